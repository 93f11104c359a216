"""One call of every public plot: its arguments, and how many axes it draws on."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import xarray as xr

from qwenlab import stats
from qwenlab.testing.ledgers import made_ledger, replayed
from qwenlab.testing.recordings import made_recording
from qwenlab.testing.traces import made_trace
from tests.planted.maps import made_maps
from tests.planted.states import made_states
from tests.planted.sweeps import made_ablated_acceptance, made_patching, made_sweep
from tests.stats.test_losses import made

COSTS = xr.Dataset(
    {"plain_step": 1.0, "verify_step": ("width", 1 + np.arange(1, 10) / 12), "draft_step": 0.1, "rollback": 0.02},
    {"width": np.arange(1, 10)},
)
ONE = "ax"
"""The number of axes of plots that take `ax=`."""


@dataclass
class Example:
    """Arguments of a plot, and its number of axes."""

    axes: int | str
    args: tuple
    kwargs: dict = field(default_factory=dict)


@cache
def examples():
    """Return {name of a plot: Example} for all public plots."""
    recording, planted, states = made_recording(sequences=16, length=40), made_maps(labels=["code"]).recording, None
    states = made_states().recording
    trace, reach = made_trace(texts=20), stats.reach(planted)
    ledger = replayed(trace, origin="online")
    acceptance, ablations = stats.acceptance(ledger), stats.ablations(made_sweep(seed=4))
    by_label = stats.reach(made_maps(labels=["code", "prose", "recall"]).recording, by_label=True)
    maps = [stats.attention_map(planted, layer=layer, head=1) for layer in (0, 3, 7)]
    lists = stats.retention(made_states(labels=["16", "4"], length=60).recording, by=None, by_label=True)
    scores = np.random.default_rng(0).uniform(0.5, 1, (2, 12))
    coords = {"pairs": [4, 16], "chance": ("text", np.full(12, 0.1))}
    accuracy = stats.mean_over_texts(xr.DataArray(scores, coords, ("pairs", "text")))
    loss = xr.DataArray(
        scores, {"domain": ["code", "prose"]}, ("domain", "text"), attrs=dict(units="nat", long_name="loss")
    )
    by_head = stats.state_rank(states).assign(stats.state_growth(states).data_vars).sel(position_bin=64)
    heads = stats.retention(made_states(heads=8).recording, by=None)
    heads = heads.assign(stats.half_life(made_recording()).data_vars).assign(
        stats.key_collision(made_recording()).data_vars
    )
    precision = stats.state_precision(states)
    of_recording = {"layer_table": ONE, "half_life": ONE, "unused_experts": ONE, "memory": ONE}
    of_recording |= {"gates": 2, "attention_distance": 2, "expert_load": 2, "distinct_experts": 2, "residual": 2}
    of_recording |= {"coactivation": 8, "specialisation": 2, "time_by_kind": 3}
    of_reach = {"reach": 7, "mass_by_distance": 2, "reconstruction": ONE, "sink": 3}
    return {
        **{name: Example(axes, (getattr(stats, name)(recording),)) for name, axes in of_recording.items()},
        **{name: Example(axes, (reach,)) for name, axes in of_reach.items()},
        "reach_by_label": Example(12, (by_label,), {"against": "prose"}),
        "attention_map": Example(3, (maps,)),
        "gate_by_token": Example(ONE, (maps[1:],)),
        "retrieval": Example(2, (retrieved(),)),
        "acceptance": Example(1, (acceptance,)),
        "agreement": Example(2, (stats.agreement(trace), acceptance)),
        "calibration": Example(2, (stats.calibration(ledger),)),
        "speedup": Example(2, (stats.speedup([timed(depth) for depth in (1, 4)], COSTS),)),
        "losses": Example(2, (stats.losses(made([(name, 20) for name in ("code", "prose") for _ in range(3)])),)),
        "mean_over_texts": Example(ONE, (stats.mean_over_texts(loss),)),
        "state_growth": Example(2, (stats.state_growth(states),)),
        "state_rank": Example(2, (stats.state_rank(states),)),
        "state_by_head": Example(4, (by_head,)),
        "state_precision": Example(ONE, (precision,)),
        "state_precision_by_head": Example(2, (precision.sel(position_bin=64),)),
        "retention": Example(6, (stats.retention(states),)),
        "retention_by_label": Example(2, (stats.retention(states, by_label=True),)),
        "capacity": Example(2, (lists, accuracy)),
        "interference": Example(2, (heads,)),
        "patching": Example(2, (stats.patching(made_patching(parts=("residual", "mixer"), pairs=10, seed=2)),)),
        "ablation_map": Example(2, (ablations,)),
        "ablation_ranking": Example(2, (ablations, "code")),
        "ablated_acceptance": Example(2, (stats.ablated_acceptance(made_ablated_acceptance()),)),
    }


def timed(depth):
    """Return a ledger with the seconds of its rounds."""
    data = made_ledger(depth=depth, texts=20)
    data["seconds"] = ("round", 1.3 + 0.2 * data["drafted"].values)
    return data


def retrieved():
    """Return statistics like those of stats.retrieval: two DeltaNet layers and one of attention, with two heads."""
    names = ("retrieval", "control", "picked", "chance")
    values = np.random.default_rng(0).uniform(0, 1, (4, 3, 2))
    variables = {name: (("layer", "head"), here) for name, here in zip(names, values, strict=True)}
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    return xr.Dataset(variables, {"layer": [0, 1, 2], "head": [0, 1], "kind": ("layer", kinds)})
