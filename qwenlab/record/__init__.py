"""Recordings: the results of probes as one xarray Dataset per probe, with their provenance. Need no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
