from .activations import Values as Values, take as take
from .attention import no_sink as no_sink, window as window
from .base import Edit as Edit, ValueEdit as ValueEdit
from .deltanet import (
    freeze_state as freeze_state,
    no_conv as no_conv,
    no_key_removal as no_key_removal,
    reset_state as reset_state,
    state_dtype as state_dtype,
)
from .experts import (
    force_experts as force_experts,
    mask_experts as mask_experts,
    no_shared_expert as no_shared_expert,
    shuffle_router as shuffle_router,
    top_k as top_k,
    uniform_router as uniform_router,
)
from .gates import set_gate as set_gate
from .session import edit as edit
from .values import (
    identity as identity,
    mean as mean,
    noise as noise,
    patch as patch,
    resample as resample,
    scale as scale,
    zero as zero,
)
