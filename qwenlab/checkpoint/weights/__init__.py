"""Find, check, hash and load weight files."""
