"""Diagnosis of an audit: which settings the head's weights need, with a sentence that gives effect and fix."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr

AuditVerdict = Literal["no fault found", "fault found", "no verdict"]

MARGIN = 0.005
"""Differences of a rate below this do not matter in decoding; with enough text any two settings differ."""

MEASURES = {"agreement": "agreement", "shared_probability": "shared probability"}

_FIXES = {
    "hidden = after the final norm": "feed it the hidden state that lm_head reads",
    "hidden = before the final norm": "feed it the input of the target model's final norm",
    "norms = 1 + w": "let its norms multiply by 1 + w",
    "norms = w": "1 was added to its norm weights before they were stored: subtract 1 from them all, or multiply by w",
    "norms = 2 + w": "1 was subtracted from its norm weights before they were stored: add 1 to them all",
    "order = embedding first": "give mtp.fc the embedding first, then the hidden state",
    "order = hidden first": "swap the two halves of the columns of mtp.fc",
    "tokens = x[p+1]": "pair the hidden state h[p] with the token after it",
    "tokens = x[p]": "pair the hidden state h[p] with its own token",
    "tokens = x[p+2]": "pair each token with the hidden state two places before it",
    "chain = after mtp.norm": "feed back the output of mtp.norm",
    "chain = before mtp.norm": "feed back the input of mtp.norm",
    "cache = prefilled": "read the pairs of the whole text into the head's cache before it drafts",
    "cache = empty": "let each chain begin with an empty cache",
    "weights = as loaded": "leave its matrices unchanged",
    "weights = scaled like the target model": (
        "the size of its matrices differs from the target model's, as for quantised weights read without their scales: "
        "multiply each block by its scale when loading"
    ),
}


def decisive_draft(label: str) -> int:
    """The draft whose rates decide about a setting: 2 for `chain`, which does not affect draft 1; otherwise 1."""
    return 2 if label.startswith("chain = ") else 1


def setting_verdict(data: xr.Dataset, label: str) -> str:
    """Verdict on one setting from its effects: wanted, worse, same or cannot tell.

    wanted       agreement or shared probability is higher than under the assumed contract, by `MARGIN` or more with an
                 interval above 0, and the other one is not lower;  worse: the reverse
    same         both intervals lie within `MARGIN`;  cannot tell: all other cases
    """
    row = decisive_row(data, label)
    effects = np.array([float(row[f"{measure}_effect"]) for measure in MEASURES])
    low, high = np.array([row[f"{measure}_effect_interval"].values for measure in MEASURES]).T
    up, down = (low > 0) & (effects >= MARGIN), (high < 0) & (effects <= -MARGIN)
    if up.any() != down.any():
        return "wanted" if up.any() else "worse"
    return "same" if ((low > -MARGIN) & (high < MARGIN)).all() else "cannot tell"


def rank_faults(data: xr.Dataset) -> tuple[str, ...]:
    """Labels of the wanted settings, the largest gain first; `chain` last, as it needs a correct draft 1."""
    wanted = [label for label in data["setting"].values.tolist()[1:] if data["verdict"].sel(setting=label) == "wanted"]

    def gain(label: str) -> float:
        return sum(float(decisive_row(data, label)[f"{measure}_effect"]) for measure in MEASURES)

    return tuple(sorted(wanted, key=lambda label: (decisive_draft(label), -gain(label))))


def diagnose(data: xr.Dataset, controls: xr.Dataset, faults: tuple[str, ...]) -> tuple[AuditVerdict, str]:
    """Verdict of an audit in a word and in a sentence, from its settings, its controls and the ranked faults."""
    if (reason := _at_chance(controls)) is not None:
        return "no verdict", f"no verdict: {reason}"
    if not faults:
        return "no fault found", f"no fault found: {_healthy(data, controls)}"
    others = f". Also better, one at a time: {', '.join(faults[1:])}" if len(faults) > 1 else ""
    return "fault found", f"the weights want {faults[0]}: {_change(data, faults[0])}; fix: {_FIXES[faults[0]]}{others}"


def _at_chance(controls: xr.Dataset) -> str | None:
    """Why there is no verdict: the head does not beat chance under its best contract; None if it does."""
    rate, own = (controls[name].isel(control=0) for name in ("agreement", "agreement_interval"))
    sentence = f"draft 1 agrees in {float(rate):.3f} {_interval(own)} of the places under its best contract"
    causes = (
        "The head is untrained or belongs to another model, two settings are wrong at once, or there are too few texts"
    )
    meanings = {
        "commonest token": "always drafting the target model's commonest token",
        "shuffled hidden": "the head with shuffled hidden states, so it does not use them",
    }
    for name, meaning in meanings.items():
        control = controls.sel(control=name)
        if not float(control["agreement_effect_interval"][1]) < 0:
            baseline = float(control["agreement"])
            return f"{sentence}, not distinguishable from {baseline:.3f} for {meaning}. {causes}"
    return None


def _healthy(data: xr.Dataset, controls: xr.Dataset) -> str:
    row = data.isel(setting=0, draft=0)
    rate = f"{float(row['agreement']):.3f} {_interval(row['agreement_interval'])}"
    chance = float(controls["agreement"].sel(control="commonest token"))
    return f"draft 1 agrees in {rate} of the places, by chance in {chance:.3f}, and no other setting does better"


def _change(data: xr.Dataset, label: str) -> str:
    """Old and new value of the decisive measure, with its effect."""
    row, assumed = decisive_row(data, label), data.isel(setting=0)
    name = next(name for name in MEASURES if float(row[f"{name}_effect_interval"][0]) > 0)
    draft = int(row["draft"])
    before, after = float(assumed[name].sel(draft=draft)), float(row[name])
    effect = f"{float(row[f'{name}_effect']):+.3f} {_interval(row[f'{name}_effect_interval'], '+')}"
    return f"{MEASURES[name]} of draft {draft} {before:.3f} -> {after:.3f}, {effect}"


def undecided_settings(data: xr.Dataset) -> list[str]:
    """A line for each setting with the verdict same or cannot tell, with the reason if it is known."""
    norms = {"hidden": ("final_norm_spread", "the target model's final norm"), "chain": ("mtp_norm_spread", "mtp.norm")}
    lines = []
    for label, verdict in zip(data["setting"].values.tolist(), data["verdict"].values.tolist(), strict=True):
        if verdict not in ("same", "cannot tell"):
            continue
        why, name = "", label.partition(" = ")[0]
        if name in norms:
            spread, norm = norms[name]
            share = f"{data.attrs[spread]:.0%} of its mean"
            why = f": the scale of {norm} varies by {share}, and norms undo its constant part"
        elif name == "weights" and not data.attrs["scaled"]:
            why = ": all matrices have about the target model's size, so none was scaled"
        lines.append(f"{'cannot tell' if verdict == 'cannot tell' else 'no difference here'}: {label}{why}")
    return lines


def decisive_row(data: xr.Dataset, label: str) -> xr.Dataset:
    """The row of a setting at its decisive draft."""
    return data.sel(setting=label, draft=decisive_draft(label))


def _interval(ends: xr.DataArray, sign: str = "") -> str:
    return "[" + ", ".join(f"{float(end):{sign}.3f}" for end in ends.values) + "]"
