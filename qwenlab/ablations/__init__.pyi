from .ablation import Ablation as Ablation, combined as combined
from .acceptance import acceptance as acceptance
from .controls import controls as controls
from .patching import patching as patching
from .sweep import sweep as sweep
from .units import UNITS as UNITS, units as units
