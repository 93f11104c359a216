"""`patching`: a value of one text put into another, site by site and position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import index
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.prefix import given_back, outputs_of_layers
from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.open import Checkpoint, require_checkpoint
from qwenlab.checkpoint.sites import Site, find_sites
from qwenlab.errors import BadArgument
from qwenlab.interventions.activations import cache_activations
from qwenlab.interventions.base import check_heads, indices
from qwenlab.interventions.module_sites import heads_of
from qwenlab.interventions.session import intervene
from qwenlab.interventions.values import Patch

TextsOrTokens = Sequence[str] | Sequence[Sequence[int]]


@torch.no_grad()
def patching(
    checkpoint: Checkpoint,
    source: TextsOrTokens,
    target: TextsOrTokens,
    answers: Sequence[int],
    *,
    sites: str = "layers.*.residual",
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Log-probability of the source's answer while the target is read, with one value of the source put in.

    source, target  texts, or token ids, in pairs: all of one length in tokens, so that positions correspond
    answers         by pair, the token that follows the source
    sites           a pattern, as in `find_sites`
    heads           only the values of these heads, together, at sites that have heads
    positions       those that are patched, one at a time; by default all

    returns  logprob [site, position, pair], nat: of the answer after the last token; source_logprob and
             target_logprob [pair] of the two texts as they are; layer and kind by site; the source's and the target's
             tokens as text [pair, position]

    Where the answer comes back, the value holds what tells it (Meng et al. 2022, arXiv:2202.05262). Raises BadArgument
    for texts that are no pairs of one length, and what `find_sites` raises.
    """
    require_checkpoint(checkpoint)
    ids = {name: _tokens(checkpoint, texts, name) for name, texts in (("source", source), ("target", target))}
    answers = _ids(answers, "patching(answers=...)")
    _check(checkpoint, ids["source"], ids["target"], answers)
    decoder, device = decoder_of(checkpoint.model), checkpoint.model.device
    chosen = _positions(positions, len(ids["source"][0]))
    places = find_sites(decoder.module, sites)
    if heads is not None:
        heads = indices(heads, "patching(heads=...)")
        for site in places:
            check_heads(heads, heads_of(decoder, site), f"patching(heads={list(heads)}): {site.name}")
    read = {name: torch.tensor(rows, device=device) for name, rows in ids.items()}
    logprob = partial(_logprob, checkpoint.model, torch.tensor(answers, device=device))
    with cache_activations(checkpoint.model, sites) as taken:
        of_source = logprob(read["source"])
    with outputs_of_layers(decoder) as layers:
        of_target = logprob(read["target"])
    found = np.zeros((len(places), len(chosen), len(answers)))
    with tqdm(total=len(places) * len(chosen), unit="patch", desc="patching", disable=not progress) as bar:
        for row, site in enumerate(places):
            for column, position in enumerate(chosen):
                value = Patch(site.name, of=taken, heads=heads, positions=[position])
                with intervene(checkpoint.model, value) as editing, given_back(decoder, editing, layers):
                    found[row, column] = logprob(read["target"])
                bar.update()
    told = {name: _strings(checkpoint, rows, chosen) for name, rows in ids.items()}
    labels = [name for name, rows in ids.items() for _ in rows]
    facts = provenance_of(checkpoint, [*ids["source"], *ids["target"]], labels)
    return _dataset(found, of_source, of_target, places, chosen, told).assign_attrs(
        facts | {"heads": ", ".join(map(str, heads or ()))}
    )


def _logprob(model: Any, answers: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    """float64 [pair], nat: of each answer after the last token."""
    logits = model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    found: np.ndarray = wide.log_softmax(dim=-1).gather(1, answers.to(wide.device)[:, None])[:, 0].cpu().numpy()
    return found


def _dataset(
    found: np.ndarray,
    of_source: np.ndarray,
    of_target: np.ndarray,
    places: Sequence[Site],
    chosen: Sequence[int],
    told: dict[str, list[list[str]]],
) -> xr.Dataset:
    """What `patching` returns, with its units."""
    meaning = "log-probability of the source's answer"
    variables = {
        "logprob": (("site", "position", "pair"), found, f"{meaning}, patched"),
        "source_logprob": ("pair", of_source, f"{meaning}, after the source"),
        "target_logprob": ("pair", of_target, f"{meaning}, after the target"),
    }
    return xr.Dataset(
        {name: (dims, values, {"units": "nat", "long_name": of}) for name, (dims, values, of) in variables.items()},
        {
            "site": [site.name for site in places],
            "layer": ("site", [site.layer for site in places]),
            "kind": ("site", [site.kind for site in places]),
            "position": ("position", list(chosen), {"units": "token", "long_name": "position that is patched"}),
            **{f"{name}_token": (("pair", "position"), strings) for name, strings in told.items()},
        },
    )


def _strings(checkpoint: Checkpoint, rows: list[list[int]], chosen: Sequence[int]) -> list[list[str]]:
    return [[str(checkpoint.tokenizer.decode([row[position]])) for position in chosen] for row in rows]


def _tokens(checkpoint: Checkpoint, texts: TextsOrTokens, name: str) -> list[list[int]]:
    where = f"patching({name}=...)"
    if isinstance(texts, str) or not len(texts):
        raise BadArgument(f"{where}: give a list of texts, at least one.")
    return [checkpoint.tokenizer(text)["input_ids"] if isinstance(text, str) else _ids(text, where) for text in texts]


def _ids(tokens: Iterable[int], where: str) -> list[int]:
    """Raises BadArgument for what is no list of whole numbers."""
    try:
        return list(map(index, tokens))
    except TypeError:
        raise BadArgument(f"{where}: give token ids in a list, each a whole number; got {tokens!r}.") from None


def _positions(positions: Sequence[int] | None, width: int) -> Sequence[int]:
    if positions is None:
        return range(width)
    chosen = indices(positions, "patching(positions=...)")
    if chosen[-1] >= width:
        raise BadArgument(f"patching(positions=...): the texts have {width} tokens; there is no position {chosen[-1]}.")
    return chosen


def _check(checkpoint: Checkpoint, source: list[list[int]], target: list[list[int]], answers: Sequence[int]) -> None:
    """Refuse what are no pairs of one length, and tokens that the model does not have."""
    if not len(source) == len(target) == len(answers):
        raise BadArgument(
            f"patching got {len(source)} sources, {len(target)} targets and {len(answers)} answers: "
            "give as many of each."
        )
    lengths = sorted({len(row) for row in (*source, *target)})
    if len(lengths) > 1 or lengths[0] < 1:
        raise BadArgument(
            f"patching got texts of {', '.join(map(str, lengths))} tokens: positions correspond only in texts of one "
            "length.\nChoose pairs that differ in tokens, not in how many."
        )
    if same := [pair for pair, (one, two) in enumerate(zip(source, target, strict=True)) if one == two]:
        raise BadArgument(f"patching: source and target of pair {same[0]} are the same text.\nLeave it out.")
    embeddings: Any = checkpoint.model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if beyond := [each for each in (*answers, *(t for row in (*source, *target) for t in row)) if not 0 <= each < rows]:
        raise BadArgument(f"patching: token {beyond[0]} is none of the model's, 0 to {rows - 1}.")
