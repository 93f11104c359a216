"""Traces: every draft at every position of a text, and the decoding that would have followed from them."""
