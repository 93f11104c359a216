"""The kinds of mixers, one file per kind: their parts, values, tensors and costs."""
