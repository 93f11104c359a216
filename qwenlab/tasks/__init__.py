"""What is read and scored: held-out texts by domain, recall, losses, agreement of drafts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
