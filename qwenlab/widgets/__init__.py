"""Statistics in, interactive views out: lists beside a figure that follows them. Needs no torch, runs no model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
