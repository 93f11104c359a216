"""REPORT.md of an experiment, from its template and the finished runs in a store."""

import jinja2
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

import qwenlab as ql
from qwenlab.errors import UnknownRun

NOTEBOOK = """\
# %% tags=["parameters"]
length: int = 8
seed: int = 0

# %%
import qwenlab as ql
import xarray as xr

ql.experiments.record(
    loss=xr.DataArray([1.0 + seed, 2.0 + length], coords={"layer": [0, 1]}, dims="layer"),
    seconds=length / 1e6,
    datasets={"raw": xr.Dataset({"square": length**2})},
)
"""
SPEC = """\
question: Does the report follow the runs?
notebook: lengths.py
sweep: {grid: {length: [8, 1024]}}
seeds: [0, 1]
metrics:
  loss: {units: nat, over: [layer]}
  seconds: {units: s}
"""
TEMPLATE = """\
Of {{ runs | length }} runs; python {{ facts["versions"]["python"] }}.

{{ metric("loss") | wide("layer", along="length", heading="{:,} tokens") }}

{{ metric("seconds", times=1e6) | wide("seed", along="length") }}

{{ table }}

{% for name in names %}
{% filter unwrap %}
- {{ name | figure_link("Loss of " ~ name) }},
  {{ square }}.
{% endfilter +%}
{% endfor %}
"""
REPORT = """\
Of 4 runs; python {python}.

| layer | 8 tokens | 1,024 tokens |
| --- | --- | --- |
| 0 | 1.5 [1, 2] | 1.5 [1, 2] |
| 1 | 10 | 1,026 |

| seed | 8 | 1024 |
| --- | --- | --- |
| 0 | 8 | 1,024 |
| 1 | 8 | 1,024 |

| layer | a |
| --- | --- |
| 7 | x |

- ![Loss of a](figures/a.png), 64.
- ![Loss of b](figures/b.png), 64.
"""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "lengths"
    made.mkdir()
    for name, text in {"lengths.py": NOTEBOOK, "spec.yaml": SPEC, "report.md.j2": TEMPLATE}.items():
        (made / name).write_text(text)
    return made


@pytest.mark.slow
def test_a_report_is_its_template_filled_from_the_runs(folder, tmp_path):
    store = tmp_path / "store"
    assert ql.experiments.run(folder, store=store).complete
    report = ql.experiments.ExperimentReport(folder, store=store)
    short = report.runs["name"][report.runs["params.length"] == 8].iloc[0]
    square = report.dataset("raw", short)["square"]
    table = pd.DataFrame({"a": ["x"]}, index=pd.Index([7], name="layer"))
    written = report.write(table=table, names=["a", "b"], square=int(square))
    assert written == folder / "REPORT.md"
    assert written.read_text() == REPORT.format(python=report.facts["versions"]["python"])
    assert isinstance(report.dataset("raw", short), xr.Dataset)

    report.figure("a", Figure())
    assert (folder / "figures" / "a.png").read_bytes().startswith(b"\x89PNG")

    before = written.read_text()
    with pytest.raises(jinja2.UndefinedError, match="'square' is undefined"):
        report.write(table=table, names=["a"])
    assert written.read_text() == before

    (folder / "spec.yaml").write_text(SPEC.replace("1024", "2048").replace("8, ", ""))
    with pytest.raises(UnknownRun, match=r"No finished run of lengths in the store: run `qwenlab run .*lengths` first"):
        ql.experiments.ExperimentReport(folder, store=store)
