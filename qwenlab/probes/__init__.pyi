from .attention import Attention as Attention
from .base import Probe as Probe
from .defaults import defaults as defaults, thorough as thorough
from .deltanet import DeltaNet as DeltaNet
from .maps.implicit import ImplicitAttention as ImplicitAttention
from .maps.softmax import SoftmaxAttention as SoftmaxAttention
from .memory import Memory as Memory
from .residual import Residual as Residual
from .routing.routing import Routing as Routing
from .session import WatchSession as WatchSession, watch as watch
from .states.base import StateProbe as StateProbe, StateUpdate as StateUpdate
from .states.delta_state import DeltaState as DeltaState
from .states.precision import StatePrecision as StatePrecision
from .states.retention import Retention as Retention
from .timing.timing import Timing as Timing
