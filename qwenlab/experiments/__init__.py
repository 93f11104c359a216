"""Experiments: a checked spec, runs that survive crashes, a store that can be queried, and comparisons."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
