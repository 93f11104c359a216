"""Acceptance of the MTP head's drafts under ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.ablation import Ablation, check_ablations, coordinates
from qwenlab.checkpoint.open import Checkpoint, require_checkpoint
from qwenlab.interventions.session import intervene
from qwenlab.speculative.scores import acceptance_score


def acceptance(
    checkpoint: Checkpoint, ablations: Sequence[Ablation], texts: Sequence[Any], *, progress: bool = True, **how: Any
) -> xr.Dataset:
    """Acceptance length under every ablation on every text, and of the unedited model on the same.

    texts, how  as `qwenlab.speculative.acceptance_score` takes them: depth, max_new_tokens, labels, ...

    returns  acceptance_length [ablation, text], clean_acceptance_length [text], tokens; NaN for a text of no round.
             Coordinates say of each ablation what it is, and of each text its label. The edited trunk verifies, and
             the head, itself unedited, drafts from its hidden states. Attrs say the rule, the depth and the text, and
             where all of it comes from

    Raises BadArgument, what `acceptance_score` raises, and what the edits raise.
    """
    require_checkpoint(checkpoint)
    check_ablations("acceptance(checkpoint, ablations, texts)", ablations)
    clean = acceptance_score(checkpoint, texts, **how)
    known: dict[str, np.ndarray] = {}  # a control may be the same edits as a unit
    for ablation in tqdm(ablations, unit="ablation", desc="accepting", disable=not progress):
        if ablation.edit not in known:
            with intervene(checkpoint.model, *ablation.edits):
                known[ablation.edit] = acceptance_score(checkpoint, texts, **how)["acceptance_length"].values
    found = [known[ablation.edit] for ablation in ablations]
    about = clean["acceptance_length"].attrs
    return xr.Dataset(
        {
            "acceptance_length": (("ablation", "text"), np.stack(found), about),
            "clean_acceptance_length": ("text", clean["acceptance_length"].values, about),
        },
        coordinates(ablations) | {"label": clean["label"]},
        clean.attrs,
    )
