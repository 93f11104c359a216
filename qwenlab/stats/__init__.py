"""Statistics: a Recording, or the Dataset of one probe, in; a Dataset with units and intervals out. Needs no torch."""

import lazy_loader

from qwenlab.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, __getattr__)
