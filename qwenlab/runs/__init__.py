"""Notebooks run as experiments: checked parameters in, an executed copy and what it saved out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
