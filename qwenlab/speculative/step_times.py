"""`step_times`: time each step of speculative decoding: plain, draft, verify by width, rollback, loop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.capture.provenance import provenance_of
from qwenlab.capture.wrapping import in_this_thread, outputs
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.streaming.refusals import refuse_decoding
from qwenlab.errors import BadPrompt
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.decoding_loop import Decoding, Settings
from qwenlab.speculative.drafter import Drafter
from qwenlab.speculative.prompts import drafting_head, encode_prompts
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.verification import Greedy
from qwenlab.stats.base.variables import variable

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
    """Time of each kind of step after a context of real text [s], the input of `qwenlab.stats.speedup`.

    plain_step             the target model reads one token and predicts the next
    verify_step [width]    it reads `width` tokens, with the recording that the rollback needs, and predicts the token
                           after each
    draft_step             the head drafts one token
    rollback               all tokens of the widest block but one are removed
    overhead               time of a round of the real loop outside these steps
    <name>_quantiles       [.., quantile] quartiles over the repeats; the cost itself is the median
    expert_choice          int [token, layer, slot], only in a MoE: the experts that the text's tokens chose, for
                           `qwenlab.stats.expert_union`; with bytes_per_expert and moe_layers in the attrs

    text     blocks are cut from it after the context; it must be long enough
    context  tokens read before the blocks; by default half of the text, at most 128
    depth    widths are 1 to depth + 1
    repeats  measurements of each step, in random order; by default 16, or fewer if the text is short

    Raises NoMtpHead, BadPrompt, BadArgument and CannotStream.
    """
    refuse_decoding(checkpoint.model)
    head = drafting_head(checkpoint, depth)
    (tokens,) = encode_prompts(checkpoint, text if isinstance(text, str) else [text], 1, where="step_times")
    widths = list(range(1, depth + 2))
    context = min(128, len(tokens) // 2) if context is None else context
    repeats = max(1, min(16, (len(tokens) - context) // len(widths) - 1)) if repeats is None else repeats
    needed = context + (repeats + 1) * len(widths)
    if len(tokens) < needed:
        raise BadPrompt(
            f"The text has {len(tokens):,} tokens, and {repeats} repeats of {depth + 1} widths after a context of "
            f"{context} need {needed:,}.\nGive a longer text, or fewer repeats."
        )
    target, drafter, method = TargetContext(checkpoint.model), Drafter(head), rollback()
    hidden = target.read(tokens[:context])
    drafter.add_pairs(tokens[1 : context + 1], hidden)
    drafter.first()
    measure = partial(_measure, target.device)
    seconds: dict[Any, list[float]] = {("verify", width): [] for width in widths} | {"rollback": [], "draft": []}
    rng = random.Random(0)
    for _ in tqdm(range(repeats), desc="timing steps", unit="repeat", disable=not progress):
        for width in rng.sample(widths, len(widths)):
            block = tokens[target.position : target.position + width]
            elapsed, hidden = measure(_verify, target, method, block)
            seconds["verify", width].append(elapsed)
            seconds["rollback"] += [measure(method.keep, target, 1)[0]] if width == widths[-1] else []
            if width < widths[-1]:
                method.keep(target, 1)
            drafter.add_pairs(tokens[target.position : target.position + 1], hidden[:1])
            seconds["draft"].append(measure(_draft, drafter, drafter.first())[0])
            drafter.discard_drafts()
    seconds["overhead"] = _overhead(head, tokens[:context], depth, rollback, repeats)
    attrs = {
        "context": context,
        "rollback": method.name,
        **provenance_of(checkpoint, [tokens.tolist()], seed=0, drafted=True),
    }
    return _with_experts(_costs(seconds, widths, attrs), TargetContext(checkpoint.model), tokens)


def _measure(device: torch.device, function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds and result of a function call; waits for the device before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = function(*args)
    wait()
    return time.perf_counter() - began, result


def _verify(context: TargetContext, rollback: Rollback, block: torch.Tensor) -> torch.Tensor:
    """Read a block and predict the token after each of its tokens; a block of one token needs no rollback."""
    with nullcontext() if len(block) == 1 else rollback.verifying(context):
        hidden = context.read(block)
    context.logits(hidden).argmax(dim=-1)
    return hidden


def _draft(drafter: Drafter, y: torch.Tensor) -> torch.Tensor:
    """Draft a token from y, and return the head's next state."""
    return drafter.next(drafter.logits(y).argmax(dim=-1), y)


def _overhead(head: MtpHead, prompt: torch.Tensor, depth: int, rollback: type[Rollback], rounds: int) -> list[float]:
    """Seconds of real rounds spent outside target model, head and rollback, one per round."""
    decoding = Decoding(head, prompt, Settings(depth, Greedy()), rollback, max_new_tokens=rounds * (depth + 1) + 1)
    decoding.start()
    measure = partial(_measure, decoding.context.device)
    overhead, spent = list[float](), list[float]()

    def timed(function: Callable[..., Any], *args: Any) -> Any:
        elapsed, result = measure(function, *args)
        spent.append(elapsed)
        return result

    parts: list[tuple[Any, str]] = [(decoding.context, "read"), (decoding.context, "logits")]
    parts += [(decoding.drafter, name) for name in ("first", "next", "logits")]
    if rollback.name != "snapshot-and-rerun":  # its `keep` calls `read`, which is timed already
        parts.append((decoding.rollback, "keep"))
    for owner, name in parts:
        setattr(owner, name, partial(timed, getattr(owner, name)))
    for _ in range(rounds):
        spent.clear()
        elapsed, _ = measure(decoding.step)
        overhead.append(elapsed - sum(spent))
        if decoding.ended:
            break
    return overhead


def _costs(seconds: dict[Any, list[float]], widths: list[int], attrs: dict[str, Any]) -> xr.Dataset:
    """Median and quartiles of the seconds of each kind of step."""
    measured: dict[str, tuple[tuple[str, ...], list[Any], str]] = {
        "verify_step": (("width",), [seconds["verify", width] for width in widths], "a verify step"),
        "plain_step": ((), seconds["verify", 1], "a plain step"),
        "draft_step": ((), seconds["draft"], "a draft step"),
        "rollback": ((), seconds["rollback"], "a rollback"),
        "overhead": ((), seconds["overhead"], "a round outside model, head and rollback"),
    }
    data: dict[str, Any] = {}
    for name, (dims, values, meaning) in measured.items():
        quartiles = np.moveaxis(np.quantile(values, QUARTILES, axis=-1), 0, -1)
        described = {"units": "s", "long_name": f"seconds of {meaning}"}
        data[name] = dims, quartiles[..., 1], described
        data[f"{name}_quantiles"] = (*dims, "quantile"), quartiles, described
    coords: dict[str, Any] = {"width": ("width", widths, {"units": "token"}), "quantile": list(QUARTILES)}
    return xr.Dataset(data, coords, attrs | {"threads": torch.get_num_threads()})


def _with_experts(costs: xr.Dataset, context: TargetContext, tokens: torch.Tensor) -> xr.Dataset:
    """Add the experts that every token of a text chose; nothing in a model without experts."""
    layers = context.decoder.layers_with("router")
    if not layers:
        return costs
    chosen: list[np.ndarray] = []
    store = in_this_thread(lambda _, __, out: chosen.append(out[2].cpu().numpy()))
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(outputs(context.decoder.part(layer, "router"), store))
        context.read(tokens)
    choice = variable(np.stack(chosen, axis=1), ("token", "layer", "slot"), "1", "experts that a token chose")
    experts: torch.nn.Module = context.decoder.part(layers[0], "experts")
    size = sum(p.nbytes for p in experts.parameters()) / context.decoder.module.config.num_experts
    attrs = {"bytes_per_expert": size, "moe_layers": len(layers)}
    return costs.assign(expert_choice=choice).assign_coords(layer=list(layers)).assign_attrs(attrs)
