from .attention import Attention as Attention
from .defaults import defaults as defaults, thorough as thorough
from .deltanet import DeltaNet as DeltaNet
from .deltastate import DeltaState as DeltaState
from .implicit import ImplicitAttention as ImplicitAttention
from .memory import Memory as Memory
from .precision import state_dtype as state_dtype
from .probe import Probe as Probe
from .residual import Residual as Residual
from .retention import Retention as Retention
from .routing import Routing as Routing
from .seen import Seen as Seen, watch as watch
from .softmax import SoftmaxAttention as SoftmaxAttention
from .stateprecision import StatePrecision as StatePrecision
from .timing import Timing as Timing
