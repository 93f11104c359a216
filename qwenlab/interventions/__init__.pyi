from .activations import ActivationCache as ActivationCache, cache_activations as cache_activations
from .attention import NoSink as NoSink, Window as Window
from .base import Intervention as Intervention, ValueIntervention as ValueIntervention
from .deltanet import (
    FreezeState as FreezeState,
    NoConv as NoConv,
    NoKeyRemoval as NoKeyRemoval,
    ResetState as ResetState,
    StateDtype as StateDtype,
)
from .experts import (
    ForceExperts as ForceExperts,
    MaskExperts as MaskExperts,
    NoSharedExpert as NoSharedExpert,
    ShuffleRouter as ShuffleRouter,
    TopK as TopK,
    UniformRouter as UniformRouter,
)
from .gates import SetGate as SetGate
from .session import intervene as intervene
from .values import (
    Identity as Identity,
    Mean as Mean,
    Noise as Noise,
    Patch as Patch,
    Resample as Resample,
    Scale as Scale,
    Zero as Zero,
)
