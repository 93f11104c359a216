from .ablated_acceptance import ablated_acceptance as ablated_acceptance
from .ablations import ablation_map as ablation_map
from .ablations_ranking import ablation_ranking as ablation_ranking
from .acceptance import acceptance as acceptance
from .agreement import agreement as agreement
from .attention import attention_distance as attention_distance
from .calibration import calibration as calibration
from .cost import memory as memory, time_by_kind as time_by_kind
from .deltanet import half_life as half_life
from .experts import distinct_experts as distinct_experts, expert_load as expert_load, unused_experts as unused_experts
from .gates import gates as gates
from .layers import layer_table as layer_table
from .losses import losses as losses
from .maps import attention_map as attention_map, gate_by_token as gate_by_token
from .patching import patching as patching
from .reach import (
    mass_by_distance as mass_by_distance,
    reach as reach,
    reach_by_label as reach_by_label,
    reconstruction as reconstruction,
    sink as sink,
)
from .residual import residual as residual
from .retention import (
    capacity as capacity,
    interference as interference,
    retention as retention,
    retention_by_label as retention_by_label,
)
from .retrieval import retrieval as retrieval
from .routing import coactivation as coactivation
from .specialisation import specialisation as specialisation
from .speedup import speedup as speedup
from .state_precision import state_precision as state_precision, state_precision_by_head as state_precision_by_head
from .states import state_by_head as state_by_head, state_growth as state_growth, state_rank as state_rank
from .style import COLOURS as COLOURS, LABELS as LABELS, style as style
from .texts import mean_over_texts as mean_over_texts
