"""Probes: what is seen of a forward pass inside a `with`, and the tallies it is reduced to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
