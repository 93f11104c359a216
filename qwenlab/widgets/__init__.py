"""Interactive views of statistics: drop-down lists and a figure that follows them. Need no torch, run no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
