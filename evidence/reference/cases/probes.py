"""Sets of probes that watch together: each probe by default, thorough, and with its other options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from evidence.reference.names import get, text


def probe(name: str, **options: Any) -> Any:
    """One probe."""
    return get(f"probe.{name}")(**options)


def of_states(checkpoint: Any) -> Iterable[Any]:
    """Probes of states, close enough together to measure short texts."""
    yield probe("DeltaState", every=4)
    yield probe("Retention", every=4, pairs=4)
    yield probe("StatePrecision", every=4)


def of_some_states(checkpoint: Any) -> Iterable[Any]:
    """The same with their other options."""
    yield probe("DeltaState", steps=[0, 3, 8, 17], heads=[1, 2])
    yield probe("Retention", every=1, pairs=1, layers=[0, 2], heads=[0, 3], stored=range(40, 180), asked=range(250))
    yield probe("StatePrecision", every=1, formats=["int8", "float8_e4m3"], after=3, layers=[1])


def of_maps(checkpoint: Any) -> Iterable[Any]:
    """Probes of maps, with all rows kept."""
    yield probe("ImplicitAttention", every=1, queries=text("all"), without_removal=True)
    yield probe("SoftmaxAttention", every=1, queries=text("all"))


def of_some_maps(checkpoint: Any) -> Iterable[Any]:
    """The same with their other options."""
    yield probe("ImplicitAttention", every=3, queries=[0, 2, 11], heads=[1], layers=[0, 1])
    yield probe("SoftmaxAttention", every=3, queries=[0, 2, 11], heads=[0, 2])


def of_blocks(checkpoint: Any) -> Iterable[Any]:
    """Maps as means over blocks of tokens."""
    yield probe("ImplicitAttention", every=2, block=4)
    yield probe("SoftmaxAttention", every=2, block=4)


def of_some_layers(checkpoint: Any) -> Iterable[Any]:
    """The default probes with other options."""
    yield probe("DeltaNet", every=3, prediction_heads=1, layers=[0, 2])
    yield probe("Attention", every=2, layers=[3])
    yield probe("Residual", every=5, layers=[1, 3])
    if hasattr(checkpoint.model.config, "num_experts"):
        yield probe("Routing", every=2, layers=[0, 3])


PROBES: dict[str, Callable[[Any], Iterable[Any]]] = {
    "defaults": lambda checkpoint: get("probe.defaults")(checkpoint),
    "thorough": lambda checkpoint: get("probe.thorough")(checkpoint),
    "some layers": of_some_layers,
    "states": of_states,
    "some states": of_some_states,
    "maps": of_maps,
    "some maps": of_some_maps,
    "blocks": of_blocks,
}
