"""Texts and tasks, and a model's scores on them: held-out texts by domain, recall tasks, losses by token."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
