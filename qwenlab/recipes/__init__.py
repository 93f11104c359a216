"""Ready-made studies of one checkpoint: each runs in one call and leaves a recording and figures in a folder."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
