from . import (
    ablations as ablations,
    checkpoint as checkpoint,
    decode as decode,
    errors as errors,
    kernels as kernels,
    plots as plots,
    probe as probe,
    record as record,
    runs as runs,
    stats as stats,
    tasks as tasks,
    testing as testing,
    widgets as widgets,
)
from .checkpoint.anatomy import anatomy as anatomy
from .checkpoint.open import open as open
from .probe.edits.editing import edit as edit
from .probe.seen import watch as watch
from .record.recording import Recording as Recording

__version__: str
