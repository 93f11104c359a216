"""The points of a spec run: here, in many kernels, on many machines."""
