"""Texts and tasks, and a model's scores on them: held-out texts by domain, recall tasks, losses by token."""

import lazy_loader

from qwenlab.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, __getattr__)
