"""Run the points of a spec: in kernels of this machine, or on a Ray cluster."""
