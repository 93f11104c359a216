"""Weight files: found, checked, hashed and loaded."""
