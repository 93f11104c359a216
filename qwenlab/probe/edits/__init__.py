"""Changes of what happens inside a model, for the length of a `with` block; the public names are in `qwenlab.probe`."""
