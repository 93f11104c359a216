"""Table with one row per layer: the most useful statistics side by side."""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

from qwenlab.errors import NotARecording, NothingMeasured
from qwenlab.record.recording import Recording
from qwenlab.stats.attention import attention_distance
from qwenlab.stats.base.source import read, statistic
from qwenlab.stats.base.variables import Variables, described
from qwenlab.stats.deltanet import half_life, writing
from qwenlab.stats.experts import expert_load
from qwenlab.stats.gates import gates
from qwenlab.stats.residual import residual
from qwenlab.stats.routing import routing


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

    A column exists if its probe watched, and is NaN for layers of the other kind. Raises NothingMeasured if no probe
    with statistics by layer watched.
    """
    if not isinstance(source, Recording):
        raise NotARecording(
            f"layer_table joins the statistics of several probes: give a Recording, not {type(source).__name__}."
        )
    columns: Variables = {}
    for node, make in _COLUMNS.items():
        if node in source:
            columns |= make(source)
    if "deltanet" in source or "attention" in source:
        columns["mean_gate"] = gates(source)["mean_gate"].mean("head")
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


def _timing(source: Recording) -> Variables:
    seconds = read(source, "timing", "seconds")["seconds"].sum(["phase", "part"])
    return {"time_share": seconds / seconds.sum()}


def _deltanet(source: Recording) -> Variables:
    return {
        "half_life": half_life(source, quantiles=(0.5,))["half_life"].isel(quantile=0, drop=True).median("head"),
        "beta": writing(source)["beta"].mean("head"),
    }


def _attention(source: Recording) -> Variables:
    return {"attention_distance": attention_distance(source)["distance"].mean("head")}


def _routing(source: Recording) -> Variables:
    tokens = routing(source)
    return {
        "router_entropy": tokens["entropy"],
        "switch_rate": tokens["switch_rate"],
        "load_entropy": expert_load(source)["normalised_entropy"],
    }


def _residual(source: Recording) -> Variables:
    added = residual(source)["ratio"]
    return {f"{part}_ratio": added.sel(part=part, drop=True) for part in ("mixer", "mlp")}


_COLUMNS: dict[str, Callable[[Recording], Variables]] = {
    "timing": _timing,
    "deltanet": _deltanet,
    "attention": _attention,
    "routing": _routing,
    "residual": _residual,
}

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
