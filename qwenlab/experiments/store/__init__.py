"""What was run: kept, found and compared."""
