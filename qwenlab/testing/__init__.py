"""Test helpers: tiny random models and checkpoints, and random recordings, ledgers and traces with planted effects."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
