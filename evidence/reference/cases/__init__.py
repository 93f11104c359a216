"""The cases, by what they exercise; each file has `cases()`, which yields names and functions that compute a result."""
