"""Check that drafted decoding writes the text and leaves the states that plain decoding does."""
