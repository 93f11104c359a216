"""Benchmarks: the cost of watching, decoding, ablating and sweeping, as ratios of paired runs in one process."""
