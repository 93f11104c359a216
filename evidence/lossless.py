"""Error rates of `check_lossless` in bfloat16: false alarms in honest runs, and detected planted tokens.

`python -m evidence.lossless` writes results/lossless.json, and one line per run to results/lossless.jsonl. After an
interruption it continues with the next run, if the code and settings are the same.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy.stats import binomtest
from tqdm.auto import tqdm

import qwenlab as ql
from evidence.planting import Planted, Recorded
from qwenlab.experiments.sweep.provenance import code, now, processor, versions

TOYS = ("toy-dense", "toy-moe")
RESULTS = Path(__file__).with_name("results")

app = typer.Typer(add_completion=False)


@app.command()
def main(
    runs: Annotated[int, typer.Option(help="planted runs per toy; there are at least as many honest runs")] = 200,
    dtype: Annotated[str, typer.Option(help="dtype of the toys")] = "bfloat16",
    out: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure the error rates on both toys."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"dtype": dtype, "code": code(), "versions": versions()}
    rows = earlier_runs(out / "lossless.jsonl", settings)
    try:
        with (out / "lossless.jsonl").open("a") as file:
            for toy in TOYS:
                for row in measured(toy, dtype, runs, [row for row in rows if row["toy"] == toy]):
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
    finally:
        summaries = {toy: summary([row for row in rows if row["toy"] == toy]) for toy in TOYS}
        result = {"measured": now(), "processor": processor(), **settings, "runs asked for": runs, "toys": summaries}
        (out / "lossless.json").write_text(json.dumps(result, indent=1) + "\n")
        typer.echo(json.dumps(summaries, indent=1))


def earlier_runs(file: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the runs in the file if it has the same settings; otherwise start a new file."""
    lines = file.read_text().splitlines() if file.exists() else []
    if lines and json.loads(lines[0]) == settings:
        return [json.loads(line) for line in lines[1:]]
    file.write_text(json.dumps(settings) + "\n")
    return []


def measured(toy: str, dtype: str, runs: int, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per additional run, until `runs` of them have a planted token."""
    checkpoint = ql.open(toy, dtype=dtype)
    count = sum("planted" in row for row in done)
    with tqdm(desc=toy, unit="planted run", initial=count, total=runs) as bar:
        for run in itertools.count(len(done)):
            if bar.n >= runs:
                return
            row = {"toy": toy, "run": run} | both(checkpoint, np.random.default_rng([TOYS.index(toy), run]))
            bar.update("planted" in row)
            yield row


def both(checkpoint: ql.checkpoint.Checkpoint, rng: np.random.Generator) -> dict[str, Any]:
    """Do an honest run on a random prompt at a random depth, and the same run with a token planted in a random round.

    The round is drawn from those in which some token is 0.45 to 0.55 nat below the best. If there are none, there is no
    planted run.
    """
    began = time.perf_counter()
    domain = str(rng.choice(ql.tasks.DOMAINS))
    text = str(rng.choice(ql.tasks.texts(domain)))
    length = int(rng.integers(16, 41))
    tokens = checkpoint.tokenizer(text)["input_ids"]
    begin = int(rng.integers(max(1, len(tokens) - length)))
    prompt = tokens[begin : begin + length]
    options: dict[str, Any] = {"depth": int(rng.integers(1, 7)), "max_new_tokens": int(rng.integers(24, 41))}
    rule = Recorded()
    honest = ql.speculative.check_lossless(checkpoint, [prompt], rule=rule, progress=False, **options)
    row = {"domain": domain, "begin": begin, "length": len(prompt), **options, "honest": of_check(honest)}
    misses = rule.near_misses[1:-1]  # the text may end in the last round, before the target model's token
    if near := [number for number, miss in enumerate(misses) if miss.on_aim]:
        row["planted"] = planted(checkpoint, prompt, int(rng.choice(near)), options)
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def planted(
    checkpoint: ql.checkpoint.Checkpoint, prompt: list[int], place: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Do a run with a token planted in round `place`; it is detected if the fault names the rule and that round."""
    rule = Planted(place)
    report = ql.speculative.check_lossless(checkpoint, [prompt], rule=rule, progress=False, **options)
    assert rule.planted is not None
    fault = report.fault
    return of_check(report) | {
        "round": place,
        "loss": rule.planted.loss,
        "detected": fault is not None and (fault.component, fault.round) == ("verdict rule", place),
    }


def of_check(report: ql.speculative.LosslessReport) -> dict[str, Any]:
    """The entries of one check in a row."""
    return {
        "verdict": report.verdict,
        "fault": None if report.fault is None else report.fault.component,
        "tokens": report.tokens,
        "differing": report.differing_tokens,
        "regret": float(report.rounds["regret"].max()),
        "detectable": report.detectable,
        "median allowed": float(report.rounds["allowed_regret"].median()),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates with 95 % Clopper-Pearson intervals, and quantiles of the results of the runs."""
    honest = [row["honest"] for row in rows]
    plants = [row["planted"] for row in rows if "planted" in row]
    return {
        "honest runs": len(honest),
        "false alarms": rate([run["fault"] is not None for run in honest]),
        "honest runs with a token that differs": sum(run["differing"] > 0 for run in honest),
        "regret of honest runs [nat]": quantiles([run["regret"] for run in honest]),
        "planted runs": len(plants),
        "detected": rate([plant["detected"] for plant in plants]),
        "loss of planted tokens in the verify pass [nat]": quantiles([plant["loss"] for plant in plants]),
        "regret of planted runs [nat]": quantiles([plant["regret"] for plant in plants]),
        "smallest detectable loss [nat]": quantiles([run["detectable"] for run in honest]),
        "median allowed regret of a run [nat]": quantiles([run["median allowed"] for run in honest]),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def rate(outcomes: list[bool]) -> dict[str, Any] | None:
    """The number of true outcomes, their share, and its 95 % Clopper-Pearson interval."""
    if not outcomes:
        return None
    test = binomtest(sum(outcomes), len(outcomes))
    interval = test.proportion_ci(method="exact")
    return {
        "count": sum(outcomes),
        "of": len(outcomes),
        "share": round(test.statistic, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Minimum, median, 95 % quantile and maximum."""
    names = {"min": 0.0, "median": 0.5, "0.95": 0.95, "max": 1.0}
    return {name: round(float(np.quantile(values, q)), 5) for name, q in names.items()} if values else {}


if __name__ == "__main__":
    app()
