"""The labelled result of watching: one xarray Dataset a probe, and where it came from. Needs no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
