"""What a warm kernel was like before its first notebook: settings are put back, and all else is compared."""
