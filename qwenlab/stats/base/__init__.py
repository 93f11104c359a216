"""What statistics share: reading and checking their input, and results with units and intervals. Nothing public."""
