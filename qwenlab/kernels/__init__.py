"""Notebooks executed: parameters checked, kernels that can be kept warm, and a true account of how each run ended."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
