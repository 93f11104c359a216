"""Check that speculative decoding gives the text and the cache states of plain decoding."""
