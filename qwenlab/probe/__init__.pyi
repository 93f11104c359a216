from .attention import Attention as Attention
from .defaults import defaults as defaults, thorough as thorough
from .deltanet import DeltaNet as DeltaNet
from .deltastate import DeltaState as DeltaState
from .edits.attention import no_sink as no_sink, window as window
from .edits.deltanet import (
    freeze_state as freeze_state,
    no_conv as no_conv,
    no_key_removal as no_key_removal,
    reset_state as reset_state,
    state_dtype as state_dtype,
)
from .edits.edit import Edit as Edit, ValueEdit as ValueEdit
from .edits.editing import edit as edit
from .edits.experts import (
    force_experts as force_experts,
    mask_experts as mask_experts,
    no_shared_expert as no_shared_expert,
    shuffle_router as shuffle_router,
    top_k as top_k,
    uniform_router as uniform_router,
)
from .edits.gates import set_gate as set_gate
from .edits.taken import Values as Values, take as take
from .edits.values import (
    identity as identity,
    mean as mean,
    noise as noise,
    patch as patch,
    resample as resample,
    scale as scale,
    zero as zero,
)
from .implicit import ImplicitAttention as ImplicitAttention
from .memory import Memory as Memory
from .probe import Probe as Probe
from .residual import Residual as Residual
from .retention import Retention as Retention
from .routing import Routing as Routing
from .seen import Seen as Seen, watch as watch
from .softmax import SoftmaxAttention as SoftmaxAttention
from .stateprecision import StatePrecision as StatePrecision
from .timing import Timing as Timing
