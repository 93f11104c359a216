"""Ablations with matched random controls: which part of a model matters for which task; activation patching."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
