"""Figures: the Dataset of one statistic in, a matplotlib Figure out; nothing is computed here. Needs no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
