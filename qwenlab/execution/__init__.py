"""Run notebooks: checked parameters, kernels that can be kept warm, and an exact record of how each run ended."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
