"""Interventions: change activations, states, routing or attention of a model for the length of a `with` block."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
