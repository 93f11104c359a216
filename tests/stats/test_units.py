"""One unit for each quantity, over all public statistics and the measures that they read."""
