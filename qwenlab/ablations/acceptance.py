"""Acceptance length of the MTP head's drafts under ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.ablation import Ablation, check_ablations, coordinates
from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.interventions.session import intervene
from qwenlab.speculative.scores import acceptance_score


def acceptance(
    checkpoint: Checkpoint, ablations: Sequence[Ablation], texts: Sequence[Any], *, progress: bool = True, **how: Any
) -> xr.Dataset:
    """Acceptance length under every ablation on every text, and without interventions on the same texts.

    texts, how  as in `qwenlab.speculative.acceptance_score`: depth, max_new_tokens, labels, ...

    returns  acceptance_length [ablation, text], clean_acceptance_length [text], tokens; NaN for a text without rounds.
             Coordinates describe each ablation and text; attrs give the rule, the depth, the text and the provenance

    The target model under the ablation verifies, and the draft head, unchanged, drafts from its hidden states. Raises
    BadArgument, and the errors of `acceptance_score` and of the interventions.
    """
    require_checkpoint(checkpoint)
    check_ablations("acceptance(checkpoint, ablations, texts)", ablations)
    clean = acceptance_score(checkpoint, texts, **how)
    lengths: dict[str, np.ndarray] = {}  # a control may have the same interventions as a unit
    for ablation in tqdm(ablations, unit="ablation", desc="accepting", disable=not progress):
        if ablation.intervention not in lengths:
            with intervene(checkpoint.model, *ablation.interventions):
                lengths[ablation.intervention] = acceptance_score(checkpoint, texts, **how)["acceptance_length"].values
    attrs = clean["acceptance_length"].attrs
    return xr.Dataset(
        {
            "acceptance_length": (
                ("ablation", "text"),
                np.stack([lengths[ablation.intervention] for ablation in ablations]),
                attrs,
            ),
            "clean_acceptance_length": ("text", clean["acceptance_length"].values, attrs),
        },
        coordinates(ablations) | {"label": clean["label"]},
        clean.attrs,
    )
