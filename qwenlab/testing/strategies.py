"""Hypothesis strategies: made recordings of any small shape."""

from collections.abc import Sequence

from hypothesis import strategies as st

from qwenlab.record.recording import PROBES
from qwenlab.testing.recordings import Made, made


@st.composite
def made_recordings(
    draw: st.DrawFn, *, probes: Sequence[str] = tuple(PROBES), fewest_labels: int = 1, fewest_sequences: int = 1
) -> Made:
    """A small made recording of these probes with its per-token values: few or many texts, labels and experts."""
    labels = draw(st.integers(fewest_labels, 3))
    experts = draw(st.integers(3, 7))
    return made(
        seed=draw(st.integers(0, 2**32 - 1)),
        layers=draw(st.sampled_from([4, 5, 8])),
        labels=["code", "prose", "recall"][:labels],
        sequences=draw(st.integers(max(labels, fewest_sequences), 18)),
        length=draw(st.integers(2, 12)),
        heads=2,
        channels=3,
        attention_heads=draw(st.integers(1, 3)),
        experts=experts,
        top_k=draw(st.integers(1, experts - 1)),
        never_used=draw(st.integers(0, 1)),
        probes=probes,
    )
