"""Speculative decoding with the MTP head: draft, verify, roll back, trace, audit, check for losslessness."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
