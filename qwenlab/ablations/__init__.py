"""Ablations with controls: which part of a model does what, asked of many parts and tasks at once."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
