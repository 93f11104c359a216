from .ablated_acceptance import ablated_acceptance as ablated_acceptance
from .ablations import ablation_map as ablation_map
from .ablations_ranking import ablation_ranking as ablation_ranking
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
from .gates import gate_histograms as gate_histograms
from .horizons import attention_distance as attention_distance, half_life as half_life
from .layers import layer_map as layer_map
from .losses import losses as losses
from .maps import attention_map as attention_map
from .patching import patching as patching
from .reach import reach as reach
from .reach_by_distance import mass_by_distance as mass_by_distance, reach_by_label as reach_by_label
from .reach_reconstruction import reconstruction as reconstruction
from .reach_sink import openness_by_token as openness_by_token, sink as sink
from .residual import residual as residual
from .retention import retention as retention, retention_by_label as retention_by_label
from .retention_capacity import capacity as capacity, interference as interference
from .retrieval import retrieval as retrieval
from .routing import coactivation as coactivation
from .specialisation import specialisation as specialisation
from .state_precision import state_precision as state_precision, state_precision_by_head as state_precision_by_head
from .states import (
    state_by_head as state_by_head,
    state_growth as state_growth,
    state_rank as state_rank,
)
from .style import COLOURS as COLOURS, LABELS as LABELS, style as style
from .texts import over_texts as over_texts
