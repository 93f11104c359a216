from . import (
    ablations as ablations,
    checkpoint as checkpoint,
    errors as errors,
    execution as execution,
    experiments as experiments,
    interventions as interventions,
    notebook as notebook,
    plots as plots,
    probes as probes,
    recipes as recipes,
    record as record,
    speculative as speculative,
    stats as stats,
    tasks as tasks,
    testing as testing,
    widgets as widgets,
)
from .checkpoint.anatomy.anatomy import anatomy as anatomy
from .checkpoint.open import open as open
from .interventions.session import intervene as intervene
from .probes.session import watch as watch
from .record.recording import Recording as Recording

__version__: str
