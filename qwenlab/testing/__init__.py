"""For your tests and ours: tiny random models, tiny checkpoints on disk, made recordings with planted truths."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
