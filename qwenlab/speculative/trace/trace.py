"""`Trace`: the drafts at every place of texts, recorded; save, open and replay it without a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.record.recording import Recording
from qwenlab.speculative.policies import Policy
from qwenlab.speculative.trace.replay import replay_ledger


class Trace:
    """The drafts at every place of texts, with the target model's choices and probabilities.

        trace = qwenlab.speculative.trace(checkpoint, texts, depth=8)
        trace.dataset                          variables [token], [token, draft] and [text]
        trace.replay(depth=3)                  the rounds that decoding would run, for qwenlab.stats.acceptance
        trace.save("trace.nc")                 and, on a machine without torch: Trace.open("trace.nc")

    In `dataset`, row t of a text is the state in which x[t] is the newest token: `draft_token` [token, draft] is the
    chain that the head drafts from there, draft k for the place t + k.
    """

    def __init__(self, dataset: xr.Dataset, facts: Mapping[str, Any]) -> None:
        self.dataset = dataset
        self.facts = dict(facts)

    @property
    def depth(self) -> int:
        """Number of drafts at each place."""
        return int(self.dataset.sizes["draft"])

    @property
    def is_own_output(self) -> bool:
        """Whether the texts are the model's own greedy output; otherwise a replay is teacher-forced."""
        return str(self.dataset.attrs["text"]) == "own"

    @property
    def non_argmax_tokens(self) -> int:
        """Number of emitted tokens that are not the target model's argmax in this pass.

        In the model's own output these are a few near ties, because kernels of another width round differently. A large
        number means that this model did not write these texts.
        """
        data = self.dataset
        text, position = data["text"].values, data["position"].values
        emitted = position[1:] >= data["begin"].values[text[1:]]
        return int((emitted & (data["token"].values[1:] != data["target_token"].values[:-1])).sum())

    def replay(self, *, depth: int | None = None, policy: Policy | None = None) -> Recording:
        """The rounds that greedy decoding would run along these texts: node "rounds", with the trace's provenance.

        depth   maximum drafts per round, up to the trace's depth, which is the default
        policy  called before each draft; by default `depth` drafts in every round

        On the model's own greedy output these are exactly the rounds that `generate` runs. On other texts the text's
        own tokens replace the target model's choices, and the ledger has text="teacher_forced". A text without an end
        of text has no round whose outcome lies beyond its last token. Raises BadPolicy and BadArgument.
        """
        depth = self.depth if depth is None else depth
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= self.depth:
            raise BadArgument(
                f"depth={depth!r}: this trace has drafts 1 to {self.depth}.\n"
                "Replay with one of those depths, or trace again with a greater depth."
            )
        return Recording({"rounds": replay_ledger(self.dataset, depth=depth, policy=policy)}, self.facts)

    def recording(self) -> Recording:
        """The dataset as the node "trace" of a Recording, with its provenance."""
        return Recording({"trace": self.dataset}, self.facts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the trace as a recording (NetCDF), and return the path."""
        return self.recording().save(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a saved trace; raises ProbeNotRecorded if it has none, and the errors of `Recording.open`."""
        recording = Recording.open(path)
        return cls(recording["trace"], recording.attrs)

    def __repr__(self) -> str:
        data = self.dataset
        window = int(data.attrs["window"])
        what = f"windows of up to {window:,} tokens" if window else "texts"
        kind = (
            f"the model's own greedy output, {self.non_argmax_tokens:,} tokens not its argmax"
            if self.is_own_output
            else "teacher-forced"
        )
        return (
            f"Trace of {self.facts.get('checkpoint', 'an unnamed model')}: depth {self.depth}, "
            f"{data.sizes['text']:,} {what}, {data.sizes['token']:,} tokens, {kind}"
        )

    def _repr_html_(self) -> str:
        return f"<div>{escape(repr(self))}</div>{self.dataset._repr_html_()}"
