"""Questions run as experiments: a checked spec, runs that survive, a store that is asked and compared."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
