"""Helpers for your own notebooks: start with a clean look, show figures and save results, numbers with intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
