from .intervals import interval as interval, intervals as intervals
from .notebook import Notebook as Notebook, start as start
