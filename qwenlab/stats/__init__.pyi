from .acceptance import acceptance as acceptance, by_depth as by_depth
from .agreement import agreement as agreement
from .attention import attention_distance as attention_distance
from .calibration import calibration as calibration
from .cost import memory as memory, time_by_kind as time_by_kind
from .deltanet import half_life as half_life, key_collision as key_collision, writing as writing
from .expert_union import expert_union as expert_union
from .experts import (
    distinct_experts as distinct_experts,
    expert_load as expert_load,
    unused_experts as unused_experts,
)
from .layers import layer_table as layer_table
from .maps import attention_map as attention_map
from .openness import gates as gates
from .reach import reach as reach
from .residual import residual as residual
from .routing import coactivation as coactivation, layer_overlap as layer_overlap, routing as routing
from .specialisation import specialisation as specialisation
from .speedup import speedup as speedup
from .states import (
    retention as retention,
    state_growth as state_growth,
    state_precision as state_precision,
    state_rank as state_rank,
)
