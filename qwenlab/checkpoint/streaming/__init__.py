"""Run checkpoints that are bigger than memory: read each layer from its file when it runs, and drop it afterwards."""
