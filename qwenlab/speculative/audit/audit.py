"""`audit`: is the MTP head wired right? Its contract is tried setting by setting, on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.open import Checkpoint, require_checkpoint
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.audit.contract import FIRST_ROW, Contract, TargetStates, states_of
from qwenlab.speculative.audit.diagnosis import (
    MEASURES,
    SettingVerdict,
    finding,
    judged,
    judged_draft,
    ranked,
    setting_verdict,
    untold,
)
from qwenlab.speculative.audit.paired_rates import FEWEST, PairedRates
from qwenlab.speculative.audit.scales import factors, weight_scales
from qwenlab.speculative.audit.trials import Trials
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.prompts import Prompt, checked_depth, context_of
from qwenlab.speculative.trace.passages import passages_of

_MEANINGS = {
    "agreement": "drafts equal to the main model's argmax / drafts, teacher-forced",
    "shared_probability": "mean over drafts of sum min(p head, p main model), teacher-forced",
}
_CONTROLS = 3
"""Of the controls, those that run the head."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Whether the head is wired right, and what that rests on. True where no fault was found.

    verdict   "no fault found"; "fault found": another setting does better; "no verdict": nothing beats chance
    diagnosis the same in a sentence, with the effect and the mend
    faults    such as "norms = w", the largest gain first
    wanted    the assumed contract with the first of them: audit again with it, for a second fault
    settings  Dataset over `setting` (the first is the assumed contract) and `draft`
    controls  Dataset over `control`: draft 1 under the wanted contract, beside what is left when the link is cut
    weights   Dataset over `weight`: root mean square of the head's matrices and the trunk's
    """

    verdict: SettingVerdict
    diagnosis: str
    faults: tuple[str, ...]
    wanted: Contract
    assumed: Contract
    settings: xr.Dataset
    controls: xr.Dataset
    weights: xr.Dataset
    facts: dict[str, Any]

    def __bool__(self) -> bool:
        return self.verdict == "no fault found"

    def __repr__(self) -> str:
        attrs, ratio = self.settings.attrs, self.weights["ratio"]
        drafts = int(self.settings["drafts"][0, 0])
        lines = [
            self.diagnosis,
            f"  {drafts:,} drafts in {attrs['texts']} texts, teacher-forced, rule greedy; effects against the "
            f"assumed contract, intervals {attrs['level']:.0%} for all of them together",
            *(f"  {line}" for line in _table(self.settings, self.controls)),
            f"  matrices: root mean square {float(ratio.min()):.2g} to {float(ratio.max()):.2g} times the trunk's",
        ]
        lines += [f"  {line}" for line in untold(self.settings)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f'<pre style="font-family:monospace;font-size:90%;line-height:1.4">{escape(repr(self))}</pre>'


def audit(
    checkpoint: Checkpoint,
    texts: Prompt | Sequence[Prompt],
    *,
    contract: Contract | None = None,
    depth: int = 2,
    max_tokens: int = 512,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Run the MTP head under the assumed contract and under each that differs in one setting, and compare.

    Draft 1 of every place of the texts is held to the main model's own distribution for that place, by two measures:
    `agreement`, how often their argmaxes are equal; and `shared_probability`, the mean of sum min(p, q), with which
    speculative sampling would accept a sampled draft (Leviathan et al. 2023, arXiv:2211.17192): it sees faults that
    seldom move an argmax. Draft k > 1 is compared where all before it agreed and the text goes on with them; draft 2
    tells what must be fed back.

    texts       several, of a kind the model writes well; 10 or more tell small effects
    contract    the settings assumed: by default those of the published heads
    depth       drafts a chain; 1 leaves the setting `chain` out
    max_tokens  read of each text;  level  of the intervals;  seed  of resampling and of the controls

    A setting is wanted where one measure rises by half a percentage point or more, with an interval above 0 after
    correction for all comparisons made (Bonferroni), and the other does not fall; on ties the assumed one stays. Of two
    faults at once the larger may show: audit again with `contract=found.wanted`. Two hidden states a token are kept.

    Raises NoMtpHead, BadPrompt, and BadArgument for a depth or level that cannot be, or too few texts.
    """
    require_checkpoint(checkpoint)
    head = checkpoint.require_mtp()
    assumed = Contract() if contract is None else contract
    checked_depth(depth, context_of(checkpoint))
    if not 0 < level < 1:
        raise BadArgument(f"level={level!r}: give the probability an interval should have, such as 0.95.")
    read = _read(checkpoint, texts, max_tokens)
    weights = weight_scales(head, checkpoint.anatomy.config.weight_block)
    variants = {label: each for label, each in assumed.variants().items() if judged_draft(label) <= depth}
    tried = {"assumed": assumed} | variants
    attrs = {
        **asdict(assumed),
        "depth": depth,
        "texts": len(read),
        "level": level,
        "comparisons": len(MEASURES) * len(variants),
        "seed": seed,
        "scaled": len(factors(weights)),
        "final_norm_spread": _spread(head.trunk.get_decoder().norm.weight),
        "mtp_norm_spread": _spread(head.norm.weight),
    }
    with tqdm(total=(len(tried) + _CONTROLS) * len(read), unit="text", desc="auditing", disable=not progress) as bar:
        trials = Trials(head, read, factors(weights), seed, bar)
        sums = {label: trials.under(each, depth=depth) for label, each in tried.items()}
        settings = _dataset("setting", sums, attrs)
        settings["verdict"] = "setting", ["", *(setting_verdict(settings, label) for label in variants)]
        faults = ranked(settings)
        wanted = assumed.changed(faults[0]) if faults else assumed
        own = {"wanted contract": sums[faults[0] if faults else "assumed"][:, :1]}
        controls = _dataset("control", own | trials.controls(wanted), attrs).isel(draft=0)
    told = finding(settings, controls, assumed, faults)
    tokens = [text.tokens.tolist() for text in read]
    facts = provenance_of(checkpoint, tokens, seed=seed, drafted=True)
    return Audit(told.verdict, told.sentence, told.faults, told.wanted, assumed, settings, controls, weights, facts)


def _read(checkpoint: Checkpoint, texts: Prompt | Sequence[Prompt], max_tokens: int) -> list[TargetStates]:
    """The beginnings of the texts, read by the trunk."""
    shortest = FIRST_ROW + 1
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < shortest:
        raise BadArgument(f"max_tokens={max_tokens!r}: give a whole number of tokens, {shortest} or more.")
    begun = [each for each in passages_of(checkpoint, texts, window=max_tokens) if each.start == 0]
    if len(begun) < FEWEST:
        raise BadArgument(
            f"{len(begun)} text{'s' if len(begun) > 1 else ''}: an interval over texts needs {FEWEST} or more.\n"
            "Give more texts, or cut a long one: qwenlab.tasks.passages(checkpoint, text)."
        )
    for number, each in enumerate(begun):
        if len(each.tokens) < shortest:
            raise BadPrompt(
                f"Text {number} has {len(each.tokens)} tokens, and a draft is compared from the third on.\n"
                f"Give at least {shortest} tokens."
            )
    device = TargetContext(checkpoint.model).device
    return [states_of(checkpoint.model, torch.tensor(each.tokens, device=device)) for each in begun]


def _dataset(dim: str, sums: dict[str, np.ndarray], attrs: dict[str, Any]) -> xr.Dataset:
    """Rates by way and draft, with intervals; and the effects against the first way, for all comparisons together.

    sums  by way, [text, draft, column] as `Trials.under` gives them
    """
    stacked = np.stack(list(sums.values()))
    corrected = 1 - (1 - attrs["level"]) / attrs["comparisons"]
    paired = [PairedRates(stacked[:, :, draft]) for draft in range(stacked.shape[2])]
    drafts = stacked[..., 0].sum(axis=1).astype(np.int64)
    data: dict[str, Any] = {"drafts": ((dim, "draft"), drafts, {"units": "draft", "long_name": "drafts compared"})}
    for kind, level, estimates in (
        ("", attrs["level"], [each.rates(attrs["level"]) for each in paired]),
        ("_effect", corrected, [each.effects(corrected) for each in paired]),
    ):
        values = np.stack([value for value, _ in estimates], axis=1)  # [way, draft, measure]
        ends = np.stack([interval for _, interval in estimates], axis=1)
        for column, (name, meaning) in enumerate(_MEANINGS.items()):
            about = {"units": "1", "long_name": f"{meaning}{', less that of the first row' if kind else ''}"}
            data[f"{name}{kind}"] = (dim, "draft"), values[..., column], about
            how = about | {"interval": "Student's t on the delete-one-text jackknife", "level": level}
            data[f"{name}{kind}_interval"] = (dim, "draft", "bound"), ends[..., column, :], how
    place = "draft", np.arange(1, stacked.shape[2] + 1), {"units": "1", "long_name": "place of a draft in its chain"}
    return xr.Dataset(data, {dim: list(sums), "draft": place, "bound": ["low", "high"]}, attrs)


def _spread(weight: torch.Tensor) -> float:
    """Standard deviation over mean of a norm's scale 1 + w; NaN where it is offloaded."""
    scale = 1 + weight.detach().float()
    return float("nan") if scale.is_meta else float(scale.std() / scale.mean())


def _table(data: xr.Dataset, controls: xr.Dataset) -> list[str]:
    """A line for each setting, judged by its own draft, and each control."""
    lines = [f"{'':36} {'agreement':>9}  {'effect':<26} {'shared p':>8}  {'effect':<26}"]
    for label in data["setting"].values.tolist():
        row = judged(data, label)
        draft = "" if row["draft"] == 1 else f", draft {int(row['draft'])}"
        lines.append(f"{label + draft:36} {_numbers(row)} {row['verdict'].item()}".rstrip())
    for label in controls["control"].values.tolist()[1:]:
        lines.append(f"{'control: ' + label:36} {_numbers(controls.sel(control=label))}".rstrip())
    return lines


def _numbers(row: xr.Dataset) -> str:
    """Both rates of a row with their effects; none for those of the first row, or that do not exist."""
    cells = []
    for name, width in (("agreement", 9), ("shared_probability", 8)):
        rate, effect = float(row[name]), float(row[f"{name}_effect"])
        low, high = row[f"{name}_effect_interval"].values
        told = "" if np.isnan(effect) else f"{effect:+.3f} [{low:+.3f}, {high:+.3f}]"
        cells.append(f"{'' if np.isnan(rate) else f'{rate:.3f}':>{width}}  {told:<26}")
    return " ".join(cells)
