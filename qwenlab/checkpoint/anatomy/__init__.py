"""Parts, parameters, bytes and FLOPs of a checkpoint, computed from its config."""
