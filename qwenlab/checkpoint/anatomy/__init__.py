"""Parts, parameters, bytes and FLOPs of a checkpoint, from its config alone."""
