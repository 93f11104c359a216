"""Probes see what happens in a forward pass inside a `with`, and reduce it to tallies; edits change what happens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
