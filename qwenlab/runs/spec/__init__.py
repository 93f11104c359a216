"""A question as it is written down, read, and checked before anything runs."""
