"""Report ablation statistics: a ranked table of one task, and sentences about which effects are significant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.stats.base.source import statistic

_NAMED = 5
"""Maximum number of ablations that a sentence names."""

_KINDS = {DELTANET: "DeltaNet", ATTENTION: "attention"}
_EFFECTS = ("effect", "effect_above_controls")
_TESTED = ("controls", "p_holm", "p_above_controls_holm", "rank_low", "rank_high", "significant")
_NEEDS = (*_EFFECTS, *(f"{name}_interval" for name in _EFFECTS), *_TESTED)


@statistic
def ablation_table(source: xr.Dataset, task: str) -> xr.Dataset:
    """One row per ablation, of one task of `ablations` or `ablated_acceptance`, the largest effect first.

    effect, effect_above_controls and, for accuracy, share_lost, with their intervals <name>_interval [.., bound];
    controls, the number of controls; p_holm, p_above_controls_holm, rank_low, rank_high and significant.

    Raises MissingVariable for other statistics, and BadArgument for a task that they do not have.
    """
    here = _checked(source, task).sel(task=task)
    names = [name for name in (*_EFFECTS, "share_lost") if name in here]
    columns = [column for name in names for column in (name, f"{name}_interval")]
    columns += _TESTED
    order = np.argsort(-here["effect"].values, kind="stable")
    table = xr.Dataset({name: here[name] for name in columns}).drop_vars("task")
    return table.isel(ablation=order).assign_attrs(source.attrs | {"task": task})


def ablation_findings(statistics: xr.Dataset) -> str:
    """Report which effects are significant, task by task, and why others are not, in Markdown with all intervals.

    statistics  of `ablations` or `ablated_acceptance`; raises MissingVariable for others
    """
    data = _checked(statistics)
    by_task = data["significant"].sum("ablation").values
    name, total = str(data.attrs.get("checkpoint", "this model")), int(by_task.sum())
    alpha, tests = 1 - float(data.attrs["level"]), int(data.attrs["hypotheses"])
    summary = "no effect is significant"
    if total:
        summary = f"{_significant(total, tests)}, in {(by_task > 0).sum()} of {_number_of(len(by_task), 'task')}"
    count = _number_of(data.sizes["ablation"], "ablation")
    lines = [
        f"**{name}, {count}, {data['effect'].attrs['long_name']}: {summary}.** "
        "An effect is significant if it differs from 0 (sign-flip test over texts) and exceeds the effects of its "
        f"random controls (Welch's t), both with p < {alpha:.2g} after Holm's correction over {tests} tests. "
        f"Brackets: {data.attrs['level']:.0%} intervals over texts.{_drafting(data)}",
        *_caveats(data),
        "",
    ]
    for task in data["task"].values:
        here = data.sel(task=task)
        sentences = " ".join(_of_task(here, str(data.attrs["score"]), alpha, tests))
        lines.append(f"- **{task}**, {_number_of(int(here['texts']), 'text')}: {sentences}")
    return "\n".join(lines) + "\n"


def _checked(statistics: xr.Dataset, task: str | None = None) -> xr.Dataset:
    """Return statistics of ablations that have this task; raise otherwise."""
    hint = "Give the result of qwenlab.stats.ablations(sweep) or qwenlab.stats.ablated_acceptance."
    if not isinstance(statistics, xr.Dataset):
        raise MissingVariable(f"This is a {type(statistics).__name__}, not a Dataset of statistics.\n{hint}")
    if missing := [name for name in _NEEDS if name not in statistics]:
        raise MissingVariable(f"No {', '.join(missing)} in this Dataset.\n{hint}")
    tasks = [str(name) for name in statistics["task"].values]
    if task is not None and task not in tasks:
        raise BadArgument(f"task={task!r}: these statistics have {', '.join(tasks)}.")
    return statistics


def _drafting(data: xr.Dataset) -> str:
    """The attributes that an acceptance length depends on, as a sentence."""
    if "rule" not in data.attrs:
        return ""
    facts = ("rule", "depth", "policy", "text")
    return f" Drafts: {', '.join(f'{name} {data.attrs[name]}' for name in facts if name in data.attrs)}."


def _caveats(data: xr.Dataset) -> Iterator[str]:
    controls = data["controls"]
    if bool((controls == 0).all()):
        yield "\nNo ablation has controls: ablating as much elsewhere may have the same effect."
    elif few := [str(name) for name in data["ablation"].values[(controls < 2).values]]:
        yield (
            f"\n{_number_of(len(few), 'ablation')} ({_listed([f'`{name}`' for name in few[:_NAMED]], len(few))}) "
            f"{'has' if len(few) == 1 else 'have'} fewer than two controls. With one control, how controls differ is "
            "not known, and the effect cannot be significant; without any, the effect is compared with 0 only."
        )
    if "left_out" in data and (left_out := int(data["left_out"].sum())):
        yield f"\nLeft out: {_number_of(left_out, 'text')} without a round under some ablation."
    if data.attrs["score"] in ("kl", "agreement"):
        yield (
            "\nThis score is never better than the intact model's: a difference from 0 only shows that the "
            "intervention changes something. The effect above the controls is what counts."
        )


def _of_task(here: xr.Dataset, score: str, alpha: float, tests: int) -> Iterator[str]:
    texts = int(here["texts"])
    if "at_chance" in here and bool(here["at_chance"]):
        yield (
            "The intact model is not significantly above chance here: accuracy "
            f"{float(here['clean_accuracy']):.3g}, chance {float(here['chance']):.3g}, difference "
            f"{_estimate(here, 'above_chance')}: "
            f"{'there is nothing to lose' if score == 'accuracy' else 'it does not solve this task, ablated or not'}."
        )
    least = 2.0 ** (1 - texts)
    if least * tests >= alpha:
        enough = int(np.floor(1 + np.log2(tests / alpha))) + 1
        yield (
            f"{_number_of(texts, 'text')} {'is' if texts == 1 else 'are'} too few: p cannot be less than {least:.2g}, "
            f"and {tests} tests need p < {alpha / tests:.2g} for the first significant effect; "
            f"read {enough} texts or more."
        )
    here = here.isel(ablation=np.argsort(-np.abs(here["effect"].values), kind="stable"))
    significant = here["significant"].values
    differs = (here["p_holm"].values < alpha) & ~significant
    rest = ~significant & ~differs
    if significant.any():
        yield f"{_significant(significant.sum(), len(significant))}: {_listing(here, significant)}."
    else:
        yield "No effect is significant."
    if differs.any():
        words = (
            "effect differs from 0 but does not significantly exceed those of its controls"
            if differs.sum() == 1
            else "effects differ from 0 but do not significantly exceed those of their controls"
        )
        yield f"{differs.sum()} more {words}: {_listing(here, differs)}."
    if rest.any():
        first = here.isel(ablation=int(rest.argmax()))
        yield (
            f"Of the other {rest.sum()}, none differs significantly from 0; the largest is {_name(first)}, "
            f"{_estimate(first, 'effect')}, p {float(first['p_holm']):.2g}."
        )


def _listing(here: xr.Dataset, which: np.ndarray) -> str:
    """The selected ablations, the first few with their numbers."""
    chosen = here.isel(ablation=np.flatnonzero(which))
    details = [_details(chosen.isel(ablation=row)) for row in range(min(_NAMED, which.sum()))]
    return _listed(details, int(which.sum()), "; ")


def _details(one: xr.Dataset) -> str:
    """One ablation: its effect, effect above controls and ranks."""
    words = [f"{_name(one)} {_estimate(one, 'effect')}"]
    if float(one["effect"]) < 0:
        words.append("the model does better without it")
    if controls := int(one["controls"]):
        p = float(one["p_above_controls_holm"])
        above = f"{_estimate(one, 'effect_above_controls')} above {_number_of(controls, 'control')}"
        words.append(above + ("" if np.isnan(p) else f" (p {p:.2g})"))
    if "share_lost" in one and np.isfinite(one["share_lost"]):
        low, high = one["share_lost_interval"].values
        words.append(f"{float(one['share_lost']):.0%} [{low:.0%}, {high:.0%}] of the accuracy above chance")
    low, high = int(one["rank_low"]), int(one["rank_high"])
    return ", ".join([*words, f"rank {low}" if low == high else f"rank {low} to {high}"])


def _name(one: xr.Dataset) -> str:
    kind = _KINDS.get(str(one["kind"].values))
    return f"`{one['ablation'].values}`" + (f" ({kind})" if kind else "")


def _estimate(one: xr.Dataset, name: str) -> str:
    """A number with its sign, interval and units."""
    low, high = one[f"{name}_interval"].values
    units = str(one[name].attrs["units"])
    ends = "[no interval]" if np.isnan(low) else f"[{low:+.3g}, {high:+.3g}]"
    return f"{float(one[name]):+.3g} {ends}" + (f" {units}" if units != "1" else "")


def _listed(words: list[str], count: int, between: str = ", ") -> str:
    more = count - len(words)
    return between.join(words) + (f"{between}and {more} more" if more > 0 else "")


def _significant(count: int, total: int) -> str:
    return f"{count} of {_number_of(total, 'effect')} {'is' if count == 1 else 'are'} significant"


def _number_of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
