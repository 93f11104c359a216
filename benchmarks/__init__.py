"""What watching costs: ratios to the bare forward pass, from paired runs in one process."""
