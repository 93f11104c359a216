"""What plots share: checks of their input, ticks, labels, and marks of heads and layers. Nothing public."""
