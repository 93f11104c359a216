"""What an audit's numbers say: which setting the head's weights want, what that means, and the mend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from qwenlab.speculative.audit.contract import Contract

SettingVerdict = Literal["no fault found", "fault found", "no verdict"]

MARGIN = 0.005
"""A difference of a rate that is smaller makes no difference to decoding: with enough text any two settings differ."""

MEASURES = {"agreement": "agreement", "shared_probability": "shared probability"}

_MENDS = {
    "hidden = after the final norm": "feed it the hidden state that lm_head reads",
    "hidden = before the final norm": "feed it what goes into the trunk's final norm",
    "norms = 1 + w": "let its norms multiply by 1 + w",
    "norms = w": "1 was added to its norm weights before they were stored: take 1 off them all, or multiply by w",
    "norms = 2 + w": "1 was taken off its norm weights before they were stored: add 1 to them all",
    "order = embedding first": "give mtp.fc the embedding first, then the hidden state",
    "order = hidden first": "swap the two halves of the columns of mtp.fc",
    "tokens = x[p+1]": "pair the hidden state h[p] with the token after it",
    "tokens = x[p]": "pair the hidden state h[p] with the token it was read from",
    "tokens = x[p+2]": "pair each token with the hidden state of two places before",
    "chain = after mtp.norm": "feed back what mtp.norm gives",
    "chain = before mtp.norm": "feed back what goes into mtp.norm",
    "cache = prefilled": "read the pairs of the whole text into the head's cache before it drafts",
    "cache = empty": "let each chain begin with an empty cache",
    "weights = as loaded": "leave its matrices as they are",
    "weights = scaled like the trunk": (
        "its matrices are of another size than the trunk's, as quantised ones read without their scales: multiply each "
        "block by its scale when they are loaded"
    ),
}


@dataclass(frozen=True)
class Finding:
    """What the numbers say.

    faults  labels of the settings that the weights want in place of the assumed ones, the largest gain first
    wanted  the assumed contract with the first of them: try again with it, for a second fault
    """

    verdict: SettingVerdict
    faults: tuple[str, ...]
    wanted: Contract
    sentence: str


def judged_draft(label: str) -> int:
    """The draft that a setting is judged by: what is fed back does nothing to the first."""
    return 2 if label.startswith("chain = ") else 1


def setting_verdict(data: xr.Dataset, label: str) -> str:
    """wanted, worse, same or cannot tell, from the effects of one setting.

    wanted       agreement or shared probability is higher than under the assumed contract, by `MARGIN` and beyond the
                 interval, and the other one is not lower;  worse: the other way round
    same         both intervals lie within `MARGIN`;  cannot tell: none of these
    """
    row = judged(data, label)
    effects = np.array([float(row[f"{measure}_effect"]) for measure in MEASURES])
    low, high = np.array([row[f"{measure}_effect_interval"].values for measure in MEASURES]).T
    up, down = (low > 0) & (effects >= MARGIN), (high < 0) & (effects <= -MARGIN)
    if up.any() != down.any():
        return "wanted" if up.any() else "worse"
    return "same" if ((low > -MARGIN) & (high < MARGIN)).all() else "cannot tell"


def ranked(data: xr.Dataset) -> tuple[str, ...]:
    """Labels of the settings that are wanted, the largest gain first; the chain, which needs a right draft 1, last."""
    wanted = [label for label in data["setting"].values.tolist()[1:] if data["verdict"].sel(setting=label) == "wanted"]
    return tuple(sorted(wanted, key=lambda label: (judged_draft(label), -_gain(judged(data, label)))))


def finding(data: xr.Dataset, controls: xr.Dataset, assumed: Contract, faults: tuple[str, ...]) -> Finding:
    """The verdict of an audit.

    data      by setting and draft, as `Audit.settings`
    controls  as `Audit.controls`, run under the contract that the first of the faults says, or the assumed one
    """
    if (trouble := _at_chance(controls)) is not None:
        return Finding("no verdict", (), assumed, f"no verdict: {trouble}")
    if not faults:
        return Finding("no fault found", (), assumed, f"no fault found: {_healthy(data, controls)}")
    others = f". Also better, each by itself: {', '.join(faults[1:])}" if len(faults) > 1 else ""
    sentence = f"the weights want {faults[0]}: {_change(data, faults[0])}; mend: {_MENDS[faults[0]]}{others}"
    return Finding("fault found", faults, assumed.changed(faults[0]), sentence)


def _at_chance(controls: xr.Dataset) -> str | None:
    """Why the head, run as its weights want it, tells nothing; None where it does better than chance."""
    rate, own = (controls[name].isel(control=0) for name in ("agreement", "agreement_interval"))
    said = f"draft 1 agrees in {float(rate):.3f} {_interval(own)} of the places, under the contract that suits it best"
    more = "It is untrained, or belongs to another model, or two settings are wrong at once; or these texts are too few"
    for control, meaning in (
        ("commonest token", "the main model's commonest token would"),
        ("shuffled hidden", "it does with its hidden states shuffled, so that it makes no use of them"),
    ):
        beside = controls.sel(control=control)
        if not float(beside["agreement_effect_interval"][1]) < 0:
            return f"{said}, not told from the {float(beside['agreement']):.3f} in which {meaning}. {more}"
    return None


def _healthy(data: xr.Dataset, controls: xr.Dataset) -> str:
    row = data.isel(setting=0, draft=0)
    rate = f"{float(row['agreement']):.3f} {_interval(row['agreement_interval'])}"
    chance = float(controls["agreement"].sel(control="commonest token"))
    return (
        f"draft 1 agrees in {rate} of the places, by chance in {chance:.3f}, and no other setting is seen to do better"
    )


def _change(data: xr.Dataset, label: str) -> str:
    """From what to what the measure that decided goes."""
    row, assumed = judged(data, label), data.isel(setting=0)
    decided = (name for name in MEASURES if float(row[f"{name}_effect_interval"][0]) > 0)
    name = next(decided)
    draft = int(row["draft"])
    before, after = float(assumed[name].sel(draft=draft)), float(row[name])
    effect = f"{float(row[f'{name}_effect']):+.3f} {_interval(row[f'{name}_effect_interval'], '+')}"
    return f"{MEASURES[name]} of draft {draft} {before:.3f} -> {after:.3f}, {effect}"


def untold(data: xr.Dataset) -> list[str]:
    """A line for each setting that is the same as the assumed one here, or cannot be told from it; with the reason."""
    norms = {"hidden": ("final_norm_spread", "the trunk's final norm"), "chain": ("mtp_norm_spread", "mtp.norm")}
    lines = []
    for label, verdict in zip(data["setting"].values.tolist(), data["verdict"].values.tolist(), strict=True):
        if verdict not in ("same", "cannot tell"):
            continue
        why, name = "", label.partition(" = ")[0]
        if name in norms:
            spread, norm = norms[name]
            share = f"{data.attrs[spread]:.0%} of its mean"
            why = f": the scale of {norm} spreads by {share}, and its even part is normed away"
        elif name == "weights" and not data.attrs["scaled"]:
            why = ": no matrix is far from the trunk's, so none was scaled"
        lines.append(f"{'cannot tell' if verdict == 'cannot tell' else 'no difference here'}: {label}{why}")
    return lines


def judged(data: xr.Dataset, label: str) -> xr.Dataset:
    """The row of a setting, at the draft that it is judged by."""
    return data.sel(setting=label, draft=judged_draft(label))


def _gain(row: xr.Dataset) -> float:
    return sum(float(row[f"{measure}_effect"]) for measure in MEASURES)


def _interval(ends: xr.DataArray, sign: str = "") -> str:
    return "[" + ", ".join(f"{float(end):{sign}.3f}" for end in ends.values) + "]"
