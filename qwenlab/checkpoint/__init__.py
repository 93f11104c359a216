"""From a name or a folder to a model whose parts have names: configs, families, anatomy, weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
