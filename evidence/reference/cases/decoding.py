"""Drafting and verifying: ledgers and traces at every depth, checks of them, and their statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from evidence.reference.models import TOYS, opened, sequences
from evidence.reference.names import get, of, text
from evidence.reference.results import Cases, Timed

DEPTHS = range(1, 7)
HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "rerun": {"rollback": "Rerun"},
    "speculative sampling": {"rule": "speculative_sampling", "temperature": 0.8, "top_p": 0.9, "seed": 3},
    "exact match": {"rule": "exact_match", "temperature": 1.0, "top_k": 20, "seed": 5},
}
TINY = "tiny-qwen3_5_moe"


def cases() -> Cases:
    """Yield every depth, rule, rollback and policy for both toys, and some for a tiny checkpoint."""
    for model in (*TOYS, TINY):
        for depth in DEPTHS if model in TOYS else (2,):
            for name, how in HOW.items():
                yield f"decoding/{model}/depth {depth}/{name}", partial(generated, model, depth, how)
            yield f"decoding/{model}/depth {depth}/trace", partial(traced, model, depth)
        for name in POLICIES if model in TOYS else ():
            yield f"decoding/{model}/{name}", partial(generated, model, 4, {"policy": name})
        for depth in (1, 3):
            for rollback in ("Replay", "Rerun"):
                yield f"decoding/{model}/lossless {depth} {rollback}", partial(lossless, model, depth, rollback)
        yield f"decoding/{model}/audit", partial(audit, model)
        yield f"decoding/{model}/acceptance_score", partial(acceptance_score, model)
        yield f"decoding/{model}/custom_generate", partial(custom_generate, model)
        yield f"decoding/{model}/step_times", partial(step_times, model)
    for toy in TOYS:
        yield f"decoding/{toy}/by_depth", partial(by_depth, toy)


def policy(name: str) -> Any:
    """A policy by name."""
    kind, arguments, options = POLICIES[name]
    return get(f"decode.{kind}")(*arguments, **options)


POLICIES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "FixedDepth": ("FixedDepth", (2,), {}),
    "Threshold": ("Threshold", (0.4,), {}),
    "Threshold that drops": ("Threshold", (0.5,), {"drops": True}),
    "ExpectedValue": ("ExpectedValue", (0.2, [1.0, 1.1, 1.3, 1.6, 1.9, 2.3, 2.7]), {"guess": [0.8, 0.6]}),
}


def prompts(model: str) -> list[list[int]]:
    """Four prompts as token ids."""
    return [row.tolist() for row in sequences(model, 30, 22, 26, 18)]


def decoded(model: str, depth: int, how: dict[str, Any]) -> Any:
    """What `decode.generate` makes of the prompts."""
    how = dict(how)
    if "rollback" in how:
        how["rollback"] = get(f"decode.{how['rollback']}")
    if "policy" in how:
        how["policy"] = policy(how["policy"])
    if "rule" in how:
        how["rule"] = text(how["rule"])
    generate, labels = get("decode.generate"), ["a", "b"] * 2
    return generate(opened(model), prompts(model), depth=depth, max_new_tokens=14, labels=labels, progress=False, **how)


def generated(model: str, depth: int, how: dict[str, Any]) -> Any:
    """A ledger, what was generated, and the statistics of the ledger."""
    made = decoded(model, depth, how)
    recording = of(made, "recording")()
    stats = {
        "acceptance": get("stats.acceptance")(recording),
        "calibration": get("stats.calibration")(recording, bins=4),
        "speedup": get("stats.speedup")(steady(made), costs(depth)),
    }
    for by in ("label", "position", "entropy"):
        stats[f"acceptance by {by}"] = get("stats.acceptance")(recording, by=text(by))
    return {"recording": Timed(recording), "tokens": made.tokens, "ended": made.ended, "statistics": stats}


def steady(made: Any) -> xr.Dataset:
    """A ledger in which every round took the same time."""
    ledger: xr.Dataset = of(made, "ledger")
    return ledger.assign({text("seconds"): ("round", np.full(ledger.sizes["round"], 0.02), {"units": "s"})})


def costs(depth: int) -> xr.Dataset:
    """Costs of steps that are not measured, as `stats.speedup` takes them."""
    widths = np.arange(1, depth + 2)
    return xr.Dataset(
        {
            "plain_step": ((), 0.01, {"units": "s"}),
            "verify_step": ("width", 0.01 + 0.001 * widths, {"units": "s"}),
            "draft_step": ((), 0.002, {"units": "s"}),
            "rollback": ((), 0.0005, {"units": "s"}),
        },
        {"width": widths},
    )


def traced(model: str, depth: int) -> Any:
    """Traces of what the model wrote and of shipped texts, their replays, and the statistics of all of these."""
    trace, checkpoint = get("decode.trace"), opened(model)
    own = trace(checkpoint, decoded(model, depth, {}), depth=depth, progress=False)
    given = trace(
        checkpoint,
        [row.tolist() for row in sequences(model, 70, 50, 64)],
        depth=depth,
        labels=["code", "prose", "recall"],
        window=48,
        chunk=32,
        progress=False,
    )
    replays = {
        f"{source} {name or 'every draft'}": of(each, "replay")(depth=depth, policy=policy(name) if name else None)
        for source, each in (("own", own), ("given", given))
        for name in (None, *POLICIES)
    }
    return {
        "traces": [Timed(of(each, "recording")()) for each in (own, given)],
        "replays": {name: Timed(each) for name, each in replays.items()},
        "agreement": [get("stats.agreement")(of(each, "recording")()) for each in (own, given)],
        "agreement by label": get("stats.agreement")(of(given, "recording")(), by_label=True),
        "acceptance": {name: get("stats.acceptance")(each) for name, each in replays.items()},
    }


def lossless(model: str, depth: int, rollback: str) -> Any:
    """The verdict of `check_lossless`, and the errors of every round."""
    return Timed(
        get("decode.check_lossless")(
            opened(model),
            prompts(model),
            depth=depth,
            max_new_tokens=8,
            rollback=get(f"decode.{rollback}"),
            progress=False,
        )
    )


def audit(model: str) -> Any:
    """The audit of the MTP head's contract."""
    rows = [row.tolist() for row in sequences(model, 60, 60, 60, 60)]
    return get("decode.audit")(opened(model), rows, depth=2, progress=False)


def acceptance_score(model: str) -> Any:
    """Acceptance lengths of texts, without and with decoding."""
    rows = [row.tolist() for row in sequences(model, 40, 30)]
    score = get("decode.acceptance_score")
    return score(opened(model), rows, depth=3), score(opened(model), prompts(model), depth=2, max_new_tokens=8)


def custom_generate(model: str) -> Any:
    """Tokens of transformers' own generate with our rounds in it, and their ledger."""
    checkpoint, found = opened(model), {}
    row = sequences(model, 25)[0][None]
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 0.9, "top_k": 30}):
        rounds = get("decode.custom_generate")(checkpoint, depth=3, seed=2)
        tokens = checkpoint.model.generate(
            row, max_new_tokens=16, custom_generate=rounds, pad_token_id=0, trust_remote_code=True, **sampling
        )
        found[str(sampling["do_sample"])] = tokens, Timed(of(rounds, "ledger"))
    return found


def step_times(model: str) -> Any:
    """Names, shapes and contexts of measured step times, and what the experts of a text are."""
    found = get("decode.step_times")(
        opened(model), sequences(model, 120)[0].tolist(), depth=2, context=40, repeats=2, progress=False
    )
    names = [name for name in ("experts", "experts_touched", "chosen") if name in found]
    return Timed(found), [found[name] for name in names]


def by_depth(toy: str) -> Any:
    """Rates of several depths, and the speedup of each."""
    made = [steady(decoded(toy, depth, {})) for depth in (1, 2, 4)]
    return (
        get("stats.by_depth")(made),
        get("stats.by_depth")(made, by=text("label")),
        get("stats.speedup")(made, costs(4)),
    )
