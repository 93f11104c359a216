from .acceptance import (
    acceptance as acceptance,
    calibration as calibration,
    speedup as speedup,
    teacher_forced as teacher_forced,
)
from .cost import memory_by_context as memory_by_context, time_by_kind as time_by_kind
from .experts import (
    distinct_experts as distinct_experts,
    expert_load as expert_load,
    unused_experts as unused_experts,
)
from .horizons import attention_distance as attention_distance, half_life as half_life
from .layers import layer_map as layer_map
from .maps import attention_map as attention_map
from .openness import gate_histograms as gate_histograms
from .reach import reach as reach
from .residual import residual as residual
from .routing import coactivation as coactivation
from .specialisation import specialisation as specialisation
from .states import (
    retention as retention,
    state_growth as state_growth,
    state_precision as state_precision,
    state_rank as state_rank,
)
from .style import COLOURS as COLOURS, LABELS as LABELS, style as style
