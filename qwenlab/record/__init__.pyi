from .provenance import provenance as provenance
from .recording import Recording as Recording, merge as merge, open as open
