"""Made recordings, ledgers and traces with planted truths, and the statistics of times, which are not measured here."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from evidence.reference.names import get, of
from evidence.reference.results import Cases

SEEDS = (0, 1)


def cases() -> Cases:
    """Yield made results by seed."""
    for seed in SEEDS:
        yield f"made/recording {seed}", partial(recording, seed)
        yield f"made/ledger {seed}", partial(ledger, seed)
        yield f"made/trace {seed}", partial(trace, seed)
    yield "made/expert_union", expert_union


def recording(seed: int) -> Any:
    """A made recording, and every statistic that reads one."""
    made = get("testing.made_recording")(seed=seed, sequences=8)
    statistics = {name: get(f"stats.{name}")(made) for name in STATISTICS}
    by_label = {name: get(f"stats.{name}")(made, by_label=True) for name in STATISTICS if name not in UNLABELLED}
    return made, statistics, by_label


STATISTICS = (
    *("attention_distance", "coactivation", "distinct_experts", "expert_load", "gates", "half_life", "key_collision"),
    *("layer_overlap", "layer_table", "memory", "residual", "routing", "specialisation", "time_by_kind"),
    *("unused_experts", "writing"),
)
UNLABELLED = {"coactivation", "layer_overlap", "layer_table", "memory", "specialisation", "time_by_kind"}


def ledger(seed: int) -> Any:
    """A made ledger, and its statistics."""
    made = get("testing.made_ledger")(seed=seed)
    return made, get("stats.acceptance")(made), get("stats.calibration")(made)


def trace(seed: int) -> Any:
    """A made trace, and its statistics."""
    made = get("testing.made_trace")(seed=seed)
    replay = of(get("decode.Trace")(made, {}), "replay")(depth=2)
    return made, get("stats.agreement")(made), replay


def expert_union() -> Any:
    """Distinct experts in blocks of tokens."""
    return get("stats.expert_union")(np.random.default_rng(0).integers(0, 16, (60, 3, 2)), widths=(1, 2, 5))
