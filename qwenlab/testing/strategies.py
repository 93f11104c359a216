"""Hypothesis strategies for small random recordings, ledgers and traces."""

from collections.abc import Sequence

import xarray as xr
from hypothesis import strategies as st

from qwenlab.testing.ledgers import Played, ledger
from qwenlab.testing.recordings import MADE, Made, made
from qwenlab.testing.traces import made_trace


@st.composite
def made_recordings(
    draw: st.DrawFn, *, probes: Sequence[str] = MADE, fewest_labels: int = 1, fewest_sequences: int = 1
) -> Made:
    """Draw a small random recording of these probes, with the values of tokens that they reduced."""
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


@st.composite
def made_ledgers(draw: st.DrawFn, *, fewest_prompts: int = 1, origin: str = "online") -> xr.Dataset:
    """Draw a small ledger with any number of drafts per round, texts that end anywhere, and length limits."""
    depth = draw(st.integers(1, 4))
    token = st.integers(0, 2)  # a small vocabulary, so drafts are often accepted; 0 ends a text
    number = st.floats(0, 1)
    rounds = []
    for prompt in range(draw(st.integers(fewest_prompts, 4))):
        label = draw(st.sampled_from(["code", "prose"]))
        for _ in range(draw(st.integers(1, 6))):
            drafted = draw(st.integers(0, depth))
            played = Played(
                draw(st.lists(token, min_size=drafted, max_size=drafted)),
                draw(st.lists(token, min_size=drafted + 1, max_size=drafted + 1)),
                prompt=prompt,
                label=label,
                proposed=draw(st.integers(drafted, depth)),
                allowed=draw(st.none() | st.integers(1, depth + 1)),
                probability=draw(st.lists(number, min_size=drafted, max_size=drafted)),
                entropy=draw(st.lists(st.floats(0, 5), min_size=drafted, max_size=drafted)),
            )
            rounds.append(played)
    return ledger(rounds, depth=depth, prefix=draw(st.integers(1, 40)), origin=origin)


@st.composite
def made_traces(draw: st.DrawFn, *, text: str = "own") -> xr.Dataset:
    """Draw a small trace of two to five short texts with one or two labels."""
    return made_trace(
        seed=draw(st.integers(0, 2**32 - 1)),
        labels=["code", "prose"][: draw(st.integers(1, 2))],
        texts=draw(st.integers(2, 5)),
        length=draw(st.integers(3, 20)),
        prompt=draw(st.integers(1, 4)),
        depth=draw(st.integers(1, 5)),
        text=text,
    )
