from .attention import Attention as Attention
from .defaults import defaults as defaults, thorough as thorough
from .deltanet import DeltaNet as DeltaNet
from .memory import Memory as Memory
from .probe import Probe as Probe
from .residual import Residual as Residual
from .routing import Routing as Routing
from .seen import Seen as Seen, watch as watch
from .timing import Timing as Timing
