"""What the steps of drafted decoding cost on this machine: plain, draft, verify by width, rollback, the loop around."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.capture.provenance import provenance_of
from qwenlab.capture.wrapping import in_this_thread, outputs
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.checkpoint.open import Checkpoint, require_checkpoint
from qwenlab.errors import BadPrompt
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.decoding import Decoding, Settings
from qwenlab.speculative.drafter import Drafter
from qwenlab.speculative.prompts import checked_depth, context_of, encoded
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.verification import Greedy

QUARTILES = (0.25, 0.5, 0.75)


@torch.no_grad()
def step_times(
    checkpoint: Checkpoint,
    text: str | list[int],
    *,
    depth: int,
    context: int | None = None,
    repeats: int | None = None,
    rollback: type[Rollback] = ReplayRollback,
    progress: bool = True,
) -> xr.Dataset:
    """Seconds of each kind of step, as `qwenlab.stats.speedup` takes them, after a context of real text.

    plain_step             the main model reads one token and finds the next
    verify_step [width]    it reads so many tokens, with what the rollback needs to see, and finds the token after each
    draft_step             the head drafts one token
    rollback               all tokens of the widest block but one are taken back
    overhead               what a round of the real loop takes beyond those
    <name>_quantiles       [.., quantile] quartiles over the repeats; the cost itself is the median
    expert_choice          int [token, layer, slot], only in a MoE: the experts that the text's tokens chose, for
                           `qwenlab.stats.expert_union`; with bytes_per_expert and moe_layers in the attrs

    text     is read on after the context, so blocks are of real text; it must be long enough
    context  tokens read before; by default half of the text, 128 at most
    depth    widths are 1 to depth + 1
    repeats  measurements of each step, in random order; by default 16, or as many as the text has room for. On a GPU
             each waits until the device is done

    Raises NoMtpHead, BadPrompt and BadArgument.
    """
    require_checkpoint(checkpoint)
    head = checkpoint.require_mtp()
    checked_depth(depth, context_of(checkpoint))
    (tokens,) = encoded(checkpoint, text if isinstance(text, str) else [text], 1)
    widths = list(range(1, depth + 2))
    context = min(128, len(tokens) // 2) if context is None else context
    repeats = max(1, min(16, (len(tokens) - context) // len(widths) - 1)) if repeats is None else repeats
    needed = context + (repeats + 1) * len(widths)
    if len(tokens) < needed:
        raise BadPrompt(
            f"The text has {len(tokens):,} tokens, and {repeats} repeats of {depth + 1} widths after a context of "
            f"{context} need {needed:,}.\nGive a longer text, or fewer repeats."
        )
    reader, drafter, own = TargetContext(checkpoint.model), Drafter(head), rollback()
    hidden = reader.read(tokens[:context])
    drafter.learn(tokens[1 : context + 1], hidden)
    drafter.first()
    clock = Clock(reader.device)
    seconds: dict[Any, list[float]] = {("verify", width): [] for width in widths} | {"rollback": [], "draft": []}
    rng = random.Random(0)
    for _ in tqdm(range(repeats), desc="timing steps", unit="repeat", disable=not progress):
        for width in rng.sample(widths, len(widths)):
            block = tokens[reader.position : reader.position + width]
            took, hidden = clock.of(_verify, reader, own, block)
            seconds["verify", width].append(took)
            seconds["rollback"] += [clock.of(own.keep, reader, 1)[0]] if width == widths[-1] else []
            if width < widths[-1]:
                own.keep(reader, 1)
            drafter.learn(tokens[reader.position : reader.position + 1], hidden[:1])
            seconds["draft"].append(clock.of(_draft, drafter, drafter.first())[0])
            drafter.forget()
    overhead = _overhead(checkpoint, tokens[:context], depth, own, repeats, clock)
    attrs = {"context": context, "rollback": own.name} | provenance_of(
        checkpoint, [tokens.tolist()], seed=0, drafted=True
    )
    return _costs(checkpoint, tokens, seconds, overhead, widths, attrs)


class Clock:
    """Seconds of what runs, waiting for the device before and after."""

    def __init__(self, device: torch.device) -> None:
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def of(self, work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
        """Do it, and say how long it took."""
        self._wait()
        began = time.perf_counter()
        result = work(*given)
        self._wait()
        return time.perf_counter() - began, result


def _verify(context: TargetContext, rollback: Rollback, block: torch.Tensor) -> torch.Tensor:
    """Read a block and find the token after each; a block of one needs no rollback."""
    if len(block) == 1:
        hidden = context.read(block)
    else:
        with rollback.verifying(context):
            hidden = context.read(block)
    context.logits(hidden).argmax(dim=-1)
    return hidden


def _draft(drafter: Drafter, y: torch.Tensor) -> torch.Tensor:
    """The draft after y, and the state that follows it."""
    return drafter.next(drafter.logits(y).argmax(dim=-1), y)


def _overhead(
    checkpoint: Checkpoint, prompt: torch.Tensor, depth: int, rollback: Rollback, rounds: int, clock: Clock
) -> list[float]:
    """Seconds of real rounds in which neither model, head nor rollback was at work."""
    head, generator = checkpoint.require_mtp(), torch.Generator(prompt.device)
    settings = Settings(depth, Greedy())
    decoding = Decoding(head, prompt, settings, rollback, max_new_tokens=rounds * (depth + 1) + 1, generator=generator)
    decoding.start()
    found = []
    with _inside(decoding, clock) as spent:
        for _ in range(rounds):
            spent.clear()
            took, _ = clock.of(decoding.step)
            found.append(took - sum(spent))
            if decoding.ended:
                break
    return found


@contextmanager
def _inside(decoding: Decoding, clock: Clock) -> Iterator[list[float]]:
    """Collect the seconds that a decoding spends in the model, the head and the rollback."""
    spent: list[float] = []

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            took, result = clock.of(work, *args)
            spent.append(took)
            return result

        return run

    parts: list[tuple[Any, str]] = [(decoding.context, "read"), (decoding.context, "logits")]
    parts += [(decoding.drafter, name) for name in ("first", "next", "logits")]
    rolls_back = decoding.rollback.name != "snapshot-and-rerun"  # that one reads again, which counts as reading
    parts += [(decoding.rollback, "keep")] if rolls_back else []
    for owner, name in parts:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        yield spent
    finally:
        for owner, name in parts:
            delattr(owner, name)


def _costs(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,
    seconds: dict[Any, list[float]],
    overhead: list[float],
    widths: list[int],
    attrs: dict[str, Any],
) -> xr.Dataset:
    by_width = np.array([np.quantile(seconds["verify", width], QUARTILES) for width in widths])
    data: dict[str, Any] = {"verify_step": ("width", by_width[:, 1], _said("a verify step"))}
    data["verify_step_quantiles"] = (("width", "quantile"), by_width, _said("a verify step"))
    single = {
        "plain_step": (seconds["verify", 1], "a plain step"),
        "draft_step": (seconds["draft"], "a draft step"),
        "rollback": (seconds["rollback"], "a rollback"),
        "overhead": (overhead, "a round beyond model, head and rollback"),
    }
    for name, (values, meaning) in single.items():
        quartiles = np.quantile(values, QUARTILES)
        data[name] = ((), quartiles[1], _said(meaning))
        data[f"{name}_quantiles"] = ("quantile", quartiles, _said(meaning))
    coords: dict[str, Any] = {"width": ("width", widths, {"units": "token"}), "quantile": list(QUARTILES)}
    costs = xr.Dataset(data, coords, attrs | {"threads": torch.get_num_threads()})
    context = TargetContext(checkpoint.model)
    sparse = context.decoder.layers_with("router")
    return costs if not sparse else _with_experts(costs, context, sparse, tokens)


def _with_experts(
    costs: xr.Dataset, context: TargetContext, layers: tuple[int, ...], tokens: torch.Tensor
) -> xr.Dataset:
    """The experts that every token of a text chose."""
    chosen: dict[int, np.ndarray] = {}
    with ExitStack() as hooks:
        for layer in layers:
            keep = in_this_thread(_keeping(chosen, layer))
            hooks.enter_context(outputs(context.decoder.part(layer, "router"), keep))
        context.read(tokens)
    choice = np.stack([chosen[layer] for layer in layers], axis=1)
    said = {"units": "1", "long_name": "experts that a token chose"}
    found = costs.assign(expert_choice=(("token", "layer", "slot"), choice, said))
    experts = _experts(context.decoder, layers[0])
    size = sum(p.nbytes for p in experts.parameters()) / context.decoder.module.config.num_experts
    return found.assign_coords(layer=list(layers)).assign_attrs(bytes_per_expert=size, moe_layers=len(layers))


def _experts(decoder: Decoder, layer: int) -> torch.nn.Module:
    module: torch.nn.Module = decoder.part(layer, "experts")
    return module


def _keeping(chosen: dict[int, np.ndarray], layer: int) -> Callable[..., None]:
    def keep(args: Any, kwargs: Any, out: Any) -> None:
        chosen[layer] = out[2].cpu().numpy()

    return keep


def _said(meaning: str) -> dict[str, str]:
    return {"units": "s", "long_name": f"seconds of {meaning}"}
