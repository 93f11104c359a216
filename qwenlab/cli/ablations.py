"""What the command `ablate` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from qwenlab import stats
from qwenlab.checkpoint.anatomy.display import COLOURS, LABELS
from qwenlab.cli.printing import estimate, print_lines, print_table
from qwenlab.recipes.inputs import Positive

if TYPE_CHECKING:
    import xarray as xr

    from qwenlab.recipes.ablate import Ablated


def print_ablations(done: Ablated, *, rows: Positive = 12) -> None:
    """The effects of ablations on each task, the findings, and the paths of the files.

    rows  ablations printed for each task, those with the largest effects
    """
    for task in done.statistics["task"].values:
        _print_effects(done.statistics, str(task), rows)
    print_lines(done.findings.read_text(encoding="utf-8"))
    if done.without_controls:
        names = ", ".join(done.without_controls[:8]) + (", ..." if len(done.without_controls) > 8 else "")
        print_lines(f"No other parts match {names}: compared with 0 alone.")
    print_lines(done.recording, done.findings, *done.figures)


def _print_effects(statistics: xr.Dataset, task: str, limit: int) -> None:
    """The ablations of a task with the largest effects, every number with its units."""
    ranked = stats.ablation_table(statistics, task)
    here, count, level = statistics.sel(task=task), ranked.sizes["ablation"], float(statistics.attrs["level"])
    units = str(ranked["effect"].attrs["units"])
    in_units = "" if units == "1" else f" ({units})"
    effect = f"{statistics['effect'].attrs['long_name']}{in_units}"
    rows: list[list[str | Text]] = []
    for index in range(min(limit, count)):
        one = ranked.isel(ablation=index)
        low, high, kind = int(one["rank_low"]), int(one["rank_high"]), str(one["kind"].values)
        effects = [
            estimate(float(one[name]), *map(float, one[f"{name}_interval"].values), form="+.3g")
            for name in ("effect", "effect_above_controls")
        ]
        ranks, significant = str(low) if low == high else f"{low} to {high}", "yes" if one["significant"] else "no"
        mixer = Text(LABELS.get(kind, "–"), COLOURS.get(kind, ""))
        rows.append([str(one["ablation"].values), mixer, *effects, f"{float(one['p_holm']):.2g}", ranks, significant])
    shown = "" if count <= limit else f", the first {limit} of {count}"
    title = f"{task}: {int(here['texts'])} texts, intervals {level:.0%}, p by Holm{shown}"
    print_table(("ablation", "mixer", effect, f"above controls{in_units}", "p", "rank", "significant"), rows, title)
