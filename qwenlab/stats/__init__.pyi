from .ablated_acceptance import ablated_acceptance as ablated_acceptance
from .ablation_findings import ablation_findings as ablation_findings, ablation_table as ablation_table
from .ablations import ablations as ablations
from .acceptance import acceptance as acceptance, by_depth as by_depth
from .agreement import agreement as agreement
from .attention import attention_distance as attention_distance
from .calibration import calibration as calibration
from .cost import memory as memory, time_by_kind as time_by_kind
from .deltanet import (
    half_life as half_life,
    key_collision as key_collision,
    writing as writing,
)
from .experts import (
    distinct_experts as distinct_experts,
    expert_load as expert_load,
    expert_union as expert_union,
    unused_experts as unused_experts,
)
from .gates import gates as gates
from .layers import layer_table as layer_table
from .losses import losses as losses
from .maps import attention_map as attention_map
from .patching import patching as patching
from .reach import reach as reach
from .residual import residual as residual
from .retention import retention as retention
from .retrieval import retrieval as retrieval
from .routing import (
    coactivation as coactivation,
    layer_overlap as layer_overlap,
    routing as routing,
)
from .specialisation import specialisation as specialisation
from .speedup import speedup as speedup
from .state_precision import state_precision as state_precision
from .states import (
    state_growth as state_growth,
    state_rank as state_rank,
)
from .texts import mean_over_texts as mean_over_texts
