"""`audit`: check how an MTP head is wired, by running it under every variant of its contract on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.arguments import integer
from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.audit.contract import FIRST_ROW, Contract, TargetStates, read_target_states
from qwenlab.speculative.audit.diagnosis import (
    MEASURES,
    AuditVerdict,
    decisive_draft,
    decisive_row,
    diagnose,
    rank_faults,
    setting_verdict,
    undecided_settings,
)
from qwenlab.speculative.audit.paired_rates import MIN_TEXTS, PairedRates
from qwenlab.speculative.audit.scales import scale_factors, weight_scales
from qwenlab.speculative.audit.trials import Trials
from qwenlab.speculative.context import input_device
from qwenlab.speculative.prompts import Prompt, drafting_head
from qwenlab.speculative.trace.passages import passages_of
from qwenlab.stats.base.variables import jackknife_method, variable

_MEANINGS = {
    "agreement": "drafts equal to the target model's argmax / drafts, teacher-forced",
    "shared_probability": "mean over drafts of sum min(p head, p target model), teacher-forced",
}
_CONTROLS = 3
"""Number of controls that run the head."""


@dataclass(frozen=True, eq=False)
class Audit:
    """Result of `audit`: the verdict on the head's wiring, with its evidence. True if no fault was found.

    verdict   "no fault found"; "fault found": another setting does better; "no verdict": no setting beats chance
    diagnosis the verdict in a sentence, with the effect and the fix
    faults    settings that do better, such as "norms = w"; the largest gain first
    wanted    the assumed contract with the first of them: audit again with it to find a second fault
    settings  Dataset over `setting` (the first is the assumed contract) and `draft`
    controls  Dataset over `control`: draft 1 under the wanted contract, and rates with the link to the target cut
    weights   Dataset over `weight`: root mean square of the head's matrices and of the target model's
    facts     provenance
    """

    verdict: AuditVerdict
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
            f"{drafts:,} drafts in {attrs['texts']} texts, teacher-forced, rule greedy; effects relative to the "
            f"assumed contract, with simultaneous {attrs['level']:.0%} intervals",
            *_table(self.settings, self.controls),
            f"matrices: root mean square {float(ratio.min()):.2g} to {float(ratio.max()):.2g} of the target model's",
            *undecided_settings(self.settings),
        ]
        return "\n  ".join(lines)

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

    Draft 1 at every place of the texts is compared with the target model's distribution for that place, by two
    measures. `agreement` is the rate of equal argmaxes. `shared_probability` is the mean of sum min(p, q), the
    probability that speculative sampling accepts a sampled draft (Leviathan et al. 2023, arXiv:2211.17192); it also
    detects faults that seldom change an argmax. Draft k > 1 is compared where all drafts before it agreed and the text
    continues with them; draft 2 shows which state must be fed back.

    texts       several, of a kind that the model writes well; use 10 or more to detect small effects
    contract    the assumed settings: by default those of the published heads
    depth       drafts per chain; 1 leaves the setting `chain` out
    max_tokens  tokens read per text; memory holds two hidden states of each
    level       of the intervals;  seed: of the controls

    A setting is wanted if one measure rises by half a percentage point or more, with an interval above 0 after
    correction for all comparisons (Bonferroni), and the other does not fall; on ties the assumed one remains. Of two
    simultaneous faults only the larger may be found: audit again with `contract=result.wanted`.

    Raises NoMtpHead, BadPrompt, and BadArgument for an invalid depth, level or max_tokens, or too few texts.
    """
    head = drafting_head(checkpoint, depth)
    assumed = Contract() if contract is None else contract
    if not 0 < level < 1:
        raise BadArgument(f"audit(level={level!r}): give a probability between 0 and 1, such as 0.95.")
    read = _read(checkpoint, texts, max_tokens)
    weights = weight_scales(head, checkpoint.anatomy.config.weight_block)
    variants = {label: variant for label, variant in assumed.variants().items() if decisive_draft(label) <= depth}
    contracts = {"assumed": assumed} | variants
    attrs = {
        **asdict(assumed),
        "depth": depth,
        "texts": len(read),
        "level": level,
        "comparisons": len(MEASURES) * len(variants),
        "seed": seed,
        "scaled": len(scale_factors(weights)),
        "final_norm_spread": _spread(head.target_model.get_decoder().norm.weight),
        "mtp_norm_spread": _spread(head.norm.weight),
    }
    readings = (len(contracts) + _CONTROLS) * len(read)
    with tqdm(total=readings, unit="text", desc="auditing", disable=not progress) as bar:
        trials = Trials(head, read, scale_factors(weights), seed, bar)
        sums = {label: trials.run(contract, depth=depth) for label, contract in contracts.items()}
        settings = _dataset("setting", sums, attrs)
        settings["verdict"] = "setting", ["", *(setting_verdict(settings, label) for label in variants)]
        faults = rank_faults(settings)
        wanted = assumed.changed(faults[0]) if faults else assumed
        own = {"wanted contract": sums[faults[0] if faults else "assumed"][:, :1]}
        controls = _dataset("control", own | trials.controls(wanted), attrs).isel(draft=0)
    verdict, diagnosis = diagnose(settings, controls, faults)
    if verdict == "no verdict":
        faults, wanted = (), assumed
    facts = provenance_of(checkpoint, [text.tokens.tolist() for text in read], seed=seed, drafted=True)
    return Audit(verdict, diagnosis, faults, wanted, assumed, settings, controls, weights, facts)


def _read(checkpoint: Checkpoint, texts: Prompt | Sequence[Prompt], max_tokens: int) -> list[TargetStates]:
    """Let the target model read the beginning of each text."""
    shortest = FIRST_ROW + 1
    integer("audit", "max_tokens", max_tokens, least=shortest, unit="tokens")
    passages = [passage for passage in passages_of(checkpoint, texts, window=max_tokens) if passage.start == 0]
    count = len(passages)
    if count < MIN_TEXTS:
        raise BadArgument(
            f"{count} text{'s' if count > 1 else ''}: an interval over texts needs {MIN_TEXTS} or more.\n"
            "Give more texts, or cut a long one: qwenlab.tasks.passages(checkpoint, text)."
        )
    for number, passage in enumerate(passages):
        if len(passage.tokens) < shortest:
            raise BadPrompt(
                f"Text {number} has {len(passage.tokens)} tokens, and drafts are compared from the third token on.\n"
                f"Give at least {shortest} tokens."
            )
    device = input_device(checkpoint.model)
    return [read_target_states(checkpoint.model, torch.tensor(passage.tokens, device=device)) for passage in passages]


def _dataset(dim: str, sums: dict[str, np.ndarray], attrs: dict[str, Any]) -> xr.Dataset:
    """Rates by condition and draft, and effects relative to the first condition, Bonferroni-corrected."""
    stacked = np.stack(list(sums.values()))
    corrected = 1 - (1 - attrs["level"]) / attrs["comparisons"]
    paired = [PairedRates(stacked[:, :, draft]) for draft in range(stacked.shape[2])]
    drafts = stacked[..., 0].sum(axis=1).astype(np.int64)
    data = {"drafts": variable(drafts, (dim, "draft"), "draft", "drafts compared")}
    for kind, level, estimates in (
        ("", attrs["level"], [rates.rates(attrs["level"]) for rates in paired]),
        ("_effect", corrected, [rates.effects(corrected) for rates in paired]),
    ):
        values = np.stack([value for value, _ in estimates], axis=1)  # [condition, draft, measure]
        ends = np.stack([interval for _, interval in estimates], axis=1)
        for column, (name, meaning) in enumerate(_MEANINGS.items()):
            about = "1", f"{meaning}{', minus that of the first row' if kind else ''}"
            data[f"{name}{kind}"] = variable(values[..., column], (dim, "draft"), *about)
            interval = variable(ends[..., column, :], (dim, "draft", "bound"), *about, jackknife_method(level, "text"))
            data[f"{name}{kind}_interval"] = interval
    place = variable(np.arange(1, stacked.shape[2] + 1), ["draft"], "1", "place of a draft in its chain")
    return xr.Dataset(data, {dim: list(sums), "draft": place, "bound": ["low", "high"]}, attrs)


def _spread(weight: torch.Tensor) -> float:
    """Standard deviation / mean of a norm's scale 1 + w; NaN if the norm is offloaded."""
    scale = 1 + weight.detach().float()
    return float("nan") if scale.is_meta else float(scale.std() / scale.mean())


def _table(data: xr.Dataset, controls: xr.Dataset) -> list[str]:
    """A line for each setting, at its decisive draft, and for each control."""
    lines = [f"{'':36} {'agreement':>9}  {'effect':<26} {'shared p':>8}  {'effect':<26}"]
    for label in data["setting"].values.tolist():
        row = decisive_row(data, label)
        draft = "" if row["draft"] == 1 else f", draft {int(row['draft'])}"
        lines.append(f"{label + draft:36} {_numbers(row)} {row['verdict'].item()}".rstrip())
    for label in controls["control"].values.tolist()[1:]:
        lines.append(f"{'control: ' + label:36} {_numbers(controls.sel(control=label))}".rstrip())
    return lines


def _numbers(row: xr.Dataset) -> str:
    """Both rates of a row with their effects; blank for rates and effects that are NaN."""
    cells = []
    for name, width in (("agreement", 9), ("shared_probability", 8)):
        rate, effect = float(row[name]), float(row[f"{name}_effect"])
        low, high = row[f"{name}_effect_interval"].values
        shown = "" if np.isnan(effect) else f"{effect:+.3f} [{low:+.3f}, {high:+.3f}]"
        cells.append(f"{'' if np.isnan(rate) else f'{rate:.3f}':>{width}}  {shown:<26}")
    return " ".join(cells)
