"""Store finished runs, find them, and compare them."""
