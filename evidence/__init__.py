"""Simulations that measure the error rates of qwenlab's own checks; the results are in evidence/results."""
