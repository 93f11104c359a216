from .notebook import Notebook as Notebook, start as start
from .number_text import interval as interval, intervals as intervals
