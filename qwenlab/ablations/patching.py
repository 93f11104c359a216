"""`patching`: activation patching between pairs of texts, site by site and position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from operator import index
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.ablations.prefix import record_prefix, reuse_prefix
from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.checkpoint import Checkpoint, require_checkpoint
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.sites import find_sites
from qwenlab.errors import BadArgument
from qwenlab.interventions.activations import cache_activations
from qwenlab.interventions.base import check_heads, indices
from qwenlab.interventions.points import heads_of
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
    """Log-probability of the source's answer after the target, with one value of the source patched in.

    source, target  texts, or token ids, in pairs: all of one length in tokens, so that positions correspond
    answers         per pair, the token that follows the source
    sites           a pattern, as in `find_sites`
    heads           only the values of these heads, patched together, at sites that have heads
    positions       the positions to patch, one at a time; by default all

    returns  logprob [site, position, pair], nat: of the answer after the last token; source_logprob and
             target_logprob [pair] of the two texts without a patch; layer and kind by site; source_token and
             target_token [pair, position] as text

    Where the answer returns, the value carries the information about it (Meng et al. 2022, arXiv:2202.05262). Raises
    BadArgument for texts that are not pairs of one length, and the errors of `find_sites`.
    """
    require_checkpoint(checkpoint)
    ids = {name: _tokens(checkpoint, texts, name) for name, texts in (("source", source), ("target", target))}
    answers = _ids(answers, "patching(answers=...)")
    _check(checkpoint, ids["source"], ids["target"], answers)
    decoder, device = decoder_of(checkpoint.model), checkpoint.model.device
    chosen = _positions(positions, len(ids["source"][0]))
    matched = find_sites(decoder.module, sites)
    if heads is not None:
        heads = indices(heads, "patching(heads=...)")
        for site in matched:
            check_heads(heads, heads_of(decoder, site), f"patching(heads={list(heads)}): {site.name}")
    read = {name: torch.tensor(rows, device=device) for name, rows in ids.items()}
    logprob = partial(_logprob, checkpoint.model, torch.tensor(answers, device=device))
    with cache_activations(checkpoint.model, sites) as cache:
        of_source = logprob(read["source"])
    with record_prefix(decoder) as prefix:
        of_target = logprob(read["target"])
    patched = np.zeros((len(matched), len(chosen), len(answers)))
    with tqdm(total=len(matched) * len(chosen), unit="patch", desc="patching", disable=not progress) as bar:
        for row, site in enumerate(matched):
            for column, position in enumerate(chosen):
                patch = Patch(site.name, cache=cache, heads=heads, positions=[position])
                with intervene(checkpoint.model, patch) as session, reuse_prefix(prefix, session):
                    patched[row, column] = logprob(read["target"])
                bar.update()
    decode = checkpoint.tokenizer.decode
    tokens = {name: [[str(decode([row[n]])) for n in chosen] for row in rows] for name, rows in ids.items()}
    labels = [name for name, rows in ids.items() for _ in rows]
    facts = provenance_of(checkpoint, [*ids["source"], *ids["target"]], labels)
    variables = {
        "logprob": (("site", "position", "pair"), patched, "patched"),
        "source_logprob": ("pair", of_source, "after the source"),
        "target_logprob": ("pair", of_target, "after the target"),
    }
    meaning = "log-probability of the source's answer"
    return xr.Dataset(
        {name: (*each, {"units": "nat", "long_name": f"{meaning}, {of}"}) for name, (*each, of) in variables.items()},
        {
            "site": [site.name for site in matched],
            "layer": ("site", [site.layer for site in matched]),
            "kind": ("site", [site.kind for site in matched]),
            "position": ("position", list(chosen), {"units": "token", "long_name": "position that is patched"}),
            **{f"{name}_token": (("pair", "position"), strings) for name, strings in tokens.items()},
        },
        facts | {"heads": ", ".join(map(str, heads or ()))},
    )


def _logprob(model: Any, answers: torch.Tensor, tokens: torch.Tensor) -> np.ndarray:
    """float64 [pair], nat: of each answer after the last token."""
    logits = model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
    wide = logits.float() if logits.device.type == "mps" else logits.double()
    logprobs: np.ndarray = wide.log_softmax(dim=-1).gather(1, answers.to(wide.device)[:, None])[:, 0].cpu().numpy()
    return logprobs


def _tokens(checkpoint: Checkpoint, texts: TextsOrTokens, name: str) -> list[list[int]]:
    where = f"patching({name}=...)"
    if isinstance(texts, str) or not len(texts):
        raise BadArgument(f"{where}: give a list of texts, at least one.")
    return [checkpoint.tokenizer(text)["input_ids"] if isinstance(text, str) else _ids(text, where) for text in texts]


def _ids(tokens: Iterable[int], where: str) -> list[int]:
    try:
        return list(map(index, tokens))
    except TypeError:
        raise BadArgument(f"{where}: give a list of token ids, all integers; got {tokens!r}.") from None


def _positions(positions: Sequence[int] | None, width: int) -> Sequence[int]:
    if positions is None:
        return range(width)
    chosen = indices(positions, "patching(positions=...)")
    if chosen[-1] >= width:
        raise BadArgument(f"patching(positions=...): the texts have {width} tokens; got position {chosen[-1]}.")
    return chosen


def _check(checkpoint: Checkpoint, source: list[list[int]], target: list[list[int]], answers: Sequence[int]) -> None:
    """Raise BadArgument unless these are pairs of one length, of tokens that the model has."""
    if not len(source) == len(target) == len(answers):
        raise BadArgument(
            f"patching got {len(source)} sources, {len(target)} targets and {len(answers)} answers.\n"
            "Give as many of each."
        )
    lengths = sorted({len(row) for row in (*source, *target)})
    if len(lengths) > 1 or lengths[0] < 1:
        raise BadArgument(
            f"patching got texts of {', '.join(map(str, lengths))} tokens; positions correspond only in texts of one "
            "length.\nChoose texts with the same number of tokens."
        )
    if same := [pair for pair, (one, two) in enumerate(zip(source, target, strict=True)) if one == two]:
        raise BadArgument(f"patching: source and target of pair {same[0]} are the same text.\nLeave it out.")
    embeddings: Any = checkpoint.model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if beyond := [n for n in (*answers, *(n for row in (*source, *target) for n in row)) if not 0 <= n < rows]:
        raise BadArgument(f"patching: the model has tokens 0 to {rows - 1}; got token {beyond[0]}.")
