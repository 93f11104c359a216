"""Reset a warm kernel to its state before the first notebook: restore settings, and detect all other changes."""
