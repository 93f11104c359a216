"""The layers of a model: a table of the most useful statistics side by side."""

from __future__ import annotations

import xarray as xr

from qwenlab.errors import NotARecording, NothingMeasured
from qwenlab.record.recording import Recording
from qwenlab.stats.attention import attention_distance
from qwenlab.stats.base.source import read, statistic
from qwenlab.stats.base.variables import Variables, described
from qwenlab.stats.deltanet import half_life, writing
from qwenlab.stats.experts import expert_load
from qwenlab.stats.gates import gates, has_gates
from qwenlab.stats.residual import residual
from qwenlab.stats.routing import routing

_MEANING = {
    "time_share": ("share of layer time", "time", "linear"),
    "half_life": ("token", "half-life", "log2"),
    "attention_distance": ("token", "attention distance", "log2"),
    "mean_gate": ("1", "output gate", "linear"),
    "beta": ("1", "write strength", "linear"),
    "router_entropy": ("nat", "router entropy", "linear"),
    "load_entropy": ("share of ln E", "load entropy", "linear"),
    "switch_rate": ("share of experts", "switch rate", "linear"),
    "mixer_ratio": ("1", "mixer / stream", "linear"),
    "mlp_ratio": ("1", "MLP / stream", "linear"),
}
"""Units, name and scale of each column of the table, in the order of the table."""


@statistic
def layer_table(source: Recording) -> xr.Dataset:
    """Table with one row per layer, from all probes of a recording; `.to_dataframe()` converts it to a DataFrame.

    kind                  kind of the mixer (a coordinate)
    time_share            share of the time of all layers, prefill and decode together
    half_life             DeltaNet: tokens, the median head's median token
    attention_distance    attention: tokens, mean over heads and queries
    mean_gate             value of the output gate, mean over channels, heads and tokens
    beta                  DeltaNet: write strength, mean over heads
    router_entropy        nats, over all experts;  load_entropy: entropy of the load over ln E, 1 for a uniform load
    switch_rate           share of a token's experts that the token before did not have
    mixer_ratio, mlp_ratio    norm of the part's output over that of the stream

    A column exists if its probe watched, and is NaN for layers of the other kind. Raises NothingMeasured without any.
    """
    if not isinstance(source, Recording):
        raise NotARecording(
            f"layer_table joins the statistics of several probes: give a Recording, not {type(source).__name__}."
        )
    columns: Variables = {}
    if "timing" in source:
        seconds = read(source, "timing", "seconds")["seconds"].sum(["phase", "part"])
        columns["time_share"] = seconds / seconds.sum()
    if "deltanet" in source:
        lives = half_life(source, quantiles=(0.5,))["half_life"].isel(quantile=0, drop=True)
        columns |= {"half_life": lives.median("head"), "beta": writing(source)["beta"].mean("head")}
    if "attention" in source:
        columns["attention_distance"] = attention_distance(source)["distance"].mean("head")
    if has_gates(source, "deltanet") or has_gates(source, "attention"):
        columns["mean_gate"] = gates(source)["mean_gate"].mean("head")
    if "routing" in source:
        tokens = routing(source)
        columns |= {"router_entropy": tokens["entropy"], "switch_rate": tokens["switch_rate"]}
        columns["load_entropy"] = expert_load(source)["normalised_entropy"]
    if "residual" in source:
        added = residual(source)["ratio"]
        columns |= {f"{part}_ratio": added.sel(part=part, drop=True) for part in ("mixer", "mlp")}
    if not columns:
        raise NothingMeasured(
            f"No statistics by layer in this recording: it has {', '.join(source) or 'nothing'}.\n"
            "Watch with probes such as DeltaNet(), Attention(), Routing() and Timing()."
        )
    table = xr.merge([column.rename(name) for name, column in columns.items()], join="outer", compat="no_conflicts")
    meanings = {name: meaning for name, meaning in _MEANING.items() if name in columns}
    return xr.Dataset(
        {name: described(table[name], units, what, scale=scale) for name, (units, what, scale) in meanings.items()}
    ).sortby("layer")
