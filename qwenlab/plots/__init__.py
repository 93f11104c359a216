"""Figures: the Dataset of one statistic in, a matplotlib Figure out; nothing is computed here. Needs no torch.

Plots draw in `axes`, matplotlib axes in reading order, or in `ax` if they have one panel; by default in those of a
new figure.
"""

import lazy_loader

from qwenlab.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, __getattr__)
