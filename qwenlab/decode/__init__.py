"""Drafting and verifying with the MTP head: rounds that are run, traces that are replayed, and policies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
