"""What is told of ablations: a ranked table of one task, and sentences about what stands and what does not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.stats.base.source import statistic

_NAMED = 5
"""Ablations that a sentence names, at most."""

_KINDS = {DELTANET: "DeltaNet", ATTENTION: "attention"}
_NEEDS = (
    "effect",
    "effect_interval",
    "effect_above_controls",
    "effect_above_controls_interval",
    "p_holm",
    "p_beyond_holm",
    "rank_low",
    "stands",
)


@statistic
def ablation_table(source: xr.Dataset, task: str) -> xr.Dataset:
    """One row per ablation, of one task of `ablations` or `ablated_acceptance`, the most harmful first.

    effect, effect_above_controls and, of accuracy, share_lost, with their intervals <name>_interval [.., bound];
    controls, their number; p_holm, p_beyond_holm, rank_low, rank_high and stands.

    Raises MissingVariable for other statistics, and BadArgument for a task that they do not have.
    """
    here = _checked(source, task).sel(task=task)
    columns: dict[str, xr.DataArray] = {}
    for name in ("effect", "effect_above_controls", "share_lost"):
        if name in here:
            columns |= {each: here[each] for each in (name, f"{name}_interval")}
    columns |= {name: here[name] for name in ("controls", "p_holm", "p_beyond_holm", "rank_low", "rank_high", "stands")}
    order = np.argsort(-here["effect"].values, kind="stable")
    return xr.Dataset(columns).drop_vars("task").isel(ablation=order).assign_attrs(source.attrs | {"task": task})


def ablation_findings(statistics: xr.Dataset) -> str:
    """What stands, task by task, and what does not and why: Markdown, every number with its interval.

    statistics  of `ablations` or `ablated_acceptance`; raises MissingVariable for others
    """
    data = _checked(statistics)
    stand = [int(data["stands"].sel(task=task).sum()) for task in data["task"].values]
    name, count = str(data.attrs.get("checkpoint", "this model")), data.sizes["ablation"]
    score = str(data.attrs["score"])
    alpha, tests = 1 - float(data.attrs["level"]), int(data.attrs["hypotheses"])
    total = (
        f"{sum(stand)} of {tests} stand, in {sum(map(bool, stand))} of {_number_of(len(stand), 'task')}"
        if any(stand)
        else "nothing stands"
    )
    lines = [
        f"**{name}, {_number_of(count, 'ablation')}, {data['effect'].attrs['long_name']}: {total}.** "
        "To stand, an ablation must differ from 0 (signs of texts flipped) and go beyond its random controls (Welch's "
        f"t), both with p < {alpha:.2g} after Holm's correction over {tests} tests. "
        f"Brackets: {data.attrs['level']:.0%} intervals over texts.{_of_what(data)}",
        *_cautions(data),
        "",
    ]
    for task in data["task"].values:
        here = data.sel(task=task)
        lines.append(
            f"- **{task}**, {_number_of(int(here['texts']), 'text')}: {' '.join(_of_task(here, score, alpha, tests))}"
        )
    return "\n".join(lines) + "\n"


def _checked(statistics: xr.Dataset, task: str | None = None) -> xr.Dataset:
    """Statistics of ablations, and with this task."""
    made = "Give what qwenlab.stats.ablations(sweep) returns, or qwenlab.stats.ablated_acceptance."
    if not isinstance(statistics, xr.Dataset):
        raise MissingVariable(f"This is a {type(statistics).__name__}, not a Dataset of statistics.\n{made}")
    if missing := [name for name in _NEEDS if name not in statistics]:
        raise MissingVariable(f"No {', '.join(missing)} in this Dataset.\n{made}")
    tasks = [str(name) for name in statistics["task"].values]
    if task is not None and task not in tasks:
        raise BadArgument(f"task={task!r}: these statistics have {', '.join(tasks)}.")
    return statistics


def _of_what(data: xr.Dataset) -> str:
    """What an acceptance length is never told without."""
    if "rule" not in data.attrs:
        return ""
    facts = ("rule", "depth", "policy", "text")
    return f" Drafts: {', '.join(f'{name} {data.attrs[name]}' for name in facts if name in data.attrs)}."


def _cautions(data: xr.Dataset) -> Iterator[str]:
    """What is to be borne in mind for all tasks."""
    controls = data["controls"]
    if bool((controls == 0).all()):
        yield "\nNo ablation has controls: whether as much elsewhere would have harmed as much is not known."
    elif few := [str(name) for name in data["ablation"].values[(controls < 2).values]]:
        yield (
            f"\n{_number_of(len(few), 'ablation')} ({_listed([f'`{name}`' for name in few[:_NAMED]], len(few))}) have "
            "fewer than two controls. Of one, how controls differ is not known, and it cannot stand; without any, how "
            "much it harms is held against 0 alone."
        )
    if "left_out" in data and int(data["left_out"].sum()):
        yield f"\n{_number_of(int(data['left_out'].sum()), 'text')} had no round under some ablation and count nowhere."
    if data.attrs["score"] in ("kl", "agreement"):
        yield (
            "\nThis score is never better than the unedited model's: that it differs from 0 says only that the edit "
            "changes something. What counts is what goes beyond the controls."
        )


def _of_task(here: xr.Dataset, score: str, alpha: float, tests: int) -> Iterator[str]:
    """Sentences about one task."""
    if "at_chance" in here and bool(here["at_chance"]):
        so = (
            "there is nothing to lose" if score == "accuracy" else "it does not do what the task asks, whatever changes"
        )
        yield (
            f"The unedited model is not surely above chance here: accuracy {float(here['clean_accuracy']):.3g}, by "
            f"chance {float(here['chance']):.3g}, {_estimate(here, 'above_chance')} above it: {so}."
        )
    least = 2.0 ** (1 - int(here["texts"]))
    if least * tests >= alpha:
        enough = int(np.floor(1 + np.log2(tests / alpha))) + 1
        yield (
            f"{_number_of(int(here['texts']), 'text')} are too few: p cannot be less than {least:.2g}, and {tests} "
            f"tests need p < {alpha / tests:.2g} for the first to stand; read {enough} texts or more."
        )
    order = np.argsort(-np.abs(here["effect"].values), kind="stable")
    here = here.isel(ablation=order)
    stands = here["stands"].values
    differs = (here["p_holm"].values < alpha) & ~stands
    rest = ~stands & ~differs
    count = len(stands)
    if stands.any():
        yield f"{stands.sum()} of {count} {_verb(stands, 'stand')}: {_told(here, stands)}."
    else:
        yield "Nothing stands."
    if differs.any():
        yield (
            f"{differs.sum()} more {_verb(differs, 'differ')} from 0 but {_verb(differs, 'do')} not surely go beyond "
            f"{'their' if differs.sum() > 1 else 'its'} controls: {_told(here, differs)}."
        )
    if rest.any():
        first = here.isel(ablation=int(rest.argmax()))
        yield (
            f"Of the other {rest.sum()} none surely differs from 0; the largest is {_name(first)}, "
            f"{_estimate(first, 'effect')}, p {float(first['p_holm']):.2g}."
        )


def _told(here: xr.Dataset, which: np.ndarray) -> str:
    """The ablations in question, the first few with all that is known."""
    chosen = here.isel(ablation=np.flatnonzero(which))
    return _listed([_one(chosen.isel(ablation=row)) for row in range(min(_NAMED, which.sum()))], int(which.sum()), "; ")


def _one(one: xr.Dataset) -> str:
    """An ablation: its effect, what goes beyond its controls, its ranks."""
    words = [f"{_name(one)} {_estimate(one, 'effect')}"]
    if float(one["effect"]) < 0:
        words.append("the model does better without it")
    if int(one["controls"]):
        p = float(one["p_beyond_holm"])
        sure = "" if np.isnan(p) else f" (p {p:.2g})"
        above = _estimate(one, "effect_above_controls")
        words.append(f"beyond {_number_of(int(one['controls']), 'control')} {above}{sure}")
    if "share_lost" in one and np.isfinite(one["share_lost"]):
        low, high = one["share_lost_interval"].values
        words.append(f"{float(one['share_lost']):.0%} [{low:.0%}, {high:.0%}] of what there is to lose")
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


def _number_of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _verb(which: np.ndarray, verb: str) -> str:
    """The verb of so many."""
    if which.sum() > 1:
        return verb
    return "does" if verb == "do" else f"{verb}s"
