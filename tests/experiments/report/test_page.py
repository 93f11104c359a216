"""The page of an experiment: what stands on it, that it stands alone, and that what it quotes stays text."""

import base64
import json
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument, UnknownRun
from qwenlab.experiments.record import COLUMNS, write_table
from qwenlab.experiments.report.page import FIGURES, LABELS, SETTINGS, report

LOSS = {"units": "nat", "over": ["text"], "pairs": "text", "better": "lower", "meaning": "Next-token loss."}
GATE = {"units": "1", "over": ["layer", "text"], "pairs": "text", "better": None, "meaning": ""}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too'"


def png(shade=0):
    """A picture of one pixel."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes([0, shade]))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class Experiment:
    """A store with one experiment, whose runs are written as an attempt writes them."""

    def __init__(self, root):
        self.root, self.number = root, 0

    def add(self, state="finished", attempt="", address=None, seed=0, loss=None, gate=None, figures=(), **more):
        """One run; `more` replaces its facts. Returns its folder."""
        self.number += 1
        address = address or f"{self.number:016x}"
        folder = self.root / "exp" / (address + attempt)
        folder.mkdir(parents=True)
        facts = {
            "format": 1,
            "state": state,
            "experiment": "exp",
            "address": address,
            "question": "Does it matter?",
            "notebook": "n.py",
            "parameters": {"max_tokens": 32, "seed": seed},
            "seed": seed,
            "checkpoints": {"checkpoint": {"source": "toy-moe", "hash": "abc123"}},
            "metrics": {"loss": LOSS, "gate": GATE},
            "attempt": 1,
            "code": {"qwenlab": "0.1", "source": "5ce5", "commit": "c0ffee"},
            "machine": {"host": "node-7", "memory": 2**31, "gpus": []},
            "versions": {"python": "3.11.7"},
            "began": f"2026-01-01T00:00:{self.number % 60:02}+00:00",
            "used": {"peak_memory": 300 * 2**20},
            "seconds": 12.25,
        }
        if state == "finished":
            facts["exit"] = {"kind": "finished", "message": ""}
        (folder / "facts.json").write_text(json.dumps(facts | more))
        for name in ("log.txt", "notebook.ipynb"):
            (folder / name).touch()
        rows = [("loss", {"text": text}, value, "nat") for text, value in enumerate(loss or [])]
        rows += [("gate", {"layer": at[0], "text": at[1]}, value, "1") for at, value in (gate or {}).items()]
        if rows:
            table = pd.DataFrame([(m, json.dumps(labels), v, u) for m, labels, v, u in rows], columns=list(COLUMNS))
            write_table(table, folder / "metrics.parquet")
        for shade, name in enumerate(figures):
            (folder / "figures").mkdir(exist_ok=True)
            (folder / "figures" / f"{name}.png").write_bytes(png(shade))
        return folder

    def page(self, **options):
        return Page(report("exp", store=self.root, **options))


class Page(HTMLParser):
    """A page as a browser takes it: its tags, its text, its tables by their accessible name."""

    VOID = ("meta", "link", "img")

    def __init__(self, path):
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.tags, self.words, self.tables, self.open = [], [], {}, []
        self.feed(self.source)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if dict(attrs).get("role") == "region":
            self.tables[dict(attrs)["aria-label"]] = self.rows = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if "th" in self.open or "td" in self.open:
                self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def attributes(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def experiment(tmp_path):
    return Experiment(tmp_path / "store")


def test_the_page_needs_nothing_but_itself(experiment):
    experiment.add(loss=[1.0], figures=["gates"])
    experiment.add("failed", ".1", exit={"kind": "timeout", "message": "late"})
    page = experiment.page()
    assert page.path == experiment.root / "exp" / "report.html"
    assert [each["src"][:22] for each in page.attributes("img")] == ["data:image/png;base64,"]
    assert page.attributes("script") == page.attributes("iframe") == []
    assert [each["href"] for each in page.attributes("link")] == ["data:,"]
    assert "@import" not in page.source and "url(" not in page.source and "//" not in page.source
    (policy,) = [each["content"] for each in page.attributes("meta") if "http-equiv" in each]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_it_is_readable_on_a_phone_and_aloud(experiment):
    experiment.add(loss=[1.0], figures=["gates"])
    page = experiment.page()
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")
    assert page.attributes("html") == [{"lang": "en"}]
    assert len(page.attributes("table")) == len(page.tables), "a table that does not scroll in a region of its own"
    regions = [each for each in page.attributes("div") if each.get("role") == "region"]
    assert all(each["tabindex"] == "0" and each["class"] == "scroll" for each in regions)
    assert all(each["scope"] in ("row", "col") for each in page.attributes("th"))
    assert [each["alt"] for each in page.attributes("img")] == ["Figure gates of run 0000000000000001, seed 0"]


def test_it_says_the_newest_question_and_how_the_runs_ended(experiment):
    experiment.add("failed", ".1", exit={"kind": "timeout", "message": "late"})
    experiment.add("running", ".1")
    experiment.add("running", ".1")
    experiment.add(question="Old wording?")
    experiment.add(question="New wording?")
    page = experiment.page()
    assert "New wording?" in page.text and "Old wording?" not in page.text
    assert "2 finished 1 failed 2 broke off" in page.text


def test_finished_runs_are_told_apart_by_what_differs(experiment):
    for tokens, seed, loss in ((32, 0, [1.0, 3.0]), (64, 1, [5.0, float("nan")])):
        experiment.add(seed=seed, loss=loss, parameters={"max_tokens": tokens, "seed": seed, "same": None})
    head, *rows = experiment.page().tables["finished runs"]
    assert head == ["run", "max_tokens", "seed", "seconds", "peak memory (MiB)", "loss (nat)"]
    assert [row[1:] for row in rows] == [["32", "0", "12.2", "300", "2"], ["64", "1", "12.2", "300", "5"]]
    assert rows[0][0] == "0000000000000001 notebook log facts"


def test_runs_of_other_code_are_not_averaged_with_them(experiment):
    experiment.add(loss=[1.0])
    experiment.add(loss=[2.0], code={"qwenlab": "0.1", "source": "0ther", "commit": None})
    tables = experiment.page().tables
    assert tables["finished runs"][0][1] == "source"
    assert tables["loss by label"] == [["text", "source=5ce5", "source=0ther"], ["0", "1", "2"]]


def test_a_metric_by_label_is_a_mean_over_seeds_with_its_spread(experiment):
    nan = float("nan")
    for seed, loss in enumerate(([1.0, 4.0, nan, nan], [2.0, nan, 7.0, nan], [6.0, 5.0, nan, nan])):
        experiment.add(seed=seed, loss=loss)
    page = experiment.page()
    assert page.tables["loss by label"] == [
        ["text", "all runs"],
        ["0", "3 1 to 6, n = 3"],
        ["1", "4.5 4 to 5, n = 2"],
        ["2", "7 n = 1"],
        ["3", "–"],
    ]
    assert "the smallest and the largest of the n : a spread, not a confidence interval" in page.text
    assert "Next-token loss. Recorded over text. Lower is better." in page.text


def test_pairs_are_averaged_within_a_run_where_there_are_other_labels(experiment):
    experiment.add(gate={(10, 0): 0.5, (10, 1): 0.7, (3, 0): 0.2, (3, 1): 0.4})
    page = experiment.page()
    assert page.tables["gate by label"] == [["layer", "all runs"], ["3", "0.3"], ["10", "0.6"]]
    assert "in each run the mean over text" in page.text
    assert "There is one run a setting, so nothing here says how much a seed changes." in page.text


def test_large_tables_are_cut_and_the_page_says_so(experiment):
    for tokens in range(SETTINGS + 2):
        experiment.add(loss=[1.0] * (LABELS + 5), parameters={"max_tokens": tokens})
    page = experiment.page()
    table = page.tables["loss by label"]
    assert (len(table) - 1, len(table[0]) - 1) == (LABELS, SETTINGS)
    assert f"Shown: {LABELS} of {LABELS + 5} labels, {SETTINGS} of {SETTINGS + 2} settings." in page.text
    assert 'ql.experiments.metrics("exp", "loss")' in page.text


def test_figures_are_embedded_whole_and_say_whose_they_are(experiment):
    for tokens in (32, 64):
        experiment.add(figures=["gates", "load"], parameters={"max_tokens": tokens}, seed=5)
    page = experiment.page()
    shown = [base64.b64decode(each["src"].partition(",")[2]) for each in page.attributes("img")]
    assert shown == [png(0), png(0), png(1), png(1)]
    captions = [f"Run {number:016x}: max_tokens={tokens}, seed 5" for number, tokens in ((1, 32), (2, 64))]
    assert page.text.count(captions[0]) == page.text.count(captions[1]) == 2


def test_figures_beyond_the_cap_are_counted_and_left_out(experiment):
    for _ in range(FIGURES // 4 + 2):
        experiment.add(figures=["a", "b", "c", "d"])
    page = experiment.page()
    assert len(page.attributes("img")) == FIGURES
    assert "8 more figures are not on this page" in page.text


def test_what_did_not_finish_stands_with_its_reason(experiment):
    failed = {"kind": "cell failed", "message": "cell [3] raised \x1b[31mValueError\x1b[0m: no"}
    experiment.add("failed", ".1", address="f" * 16, exit=failed)
    experiment.add(address="f" * 16)
    experiment.add("running", ".1")
    rows = experiment.page().tables["runs that did not finish"][1:]
    assert rows[0] == ["f" * 16 + ".1 notebook log facts", "cell failed", "cell [3] raised ValueError: no", "finished"]
    assert rows[1][1:] == ["broken off", "its runner died and could not say how it ended", "not finished"]


def test_an_experiment_of_which_nothing_finished_has_its_page(experiment):
    experiment.add("failed", ".1", exit={"kind": "timeout", "message": "late"})
    page = experiment.page()
    assert "No run has finished." in page.text
    assert ["versions.python", "3.11.7"] in page.tables["facts that are the same in all runs"]


def test_facts_stand_once_where_they_are_alike_and_by_run_where_not(experiment):
    experiment.add()
    experiment.add(versions={"python": "3.12.0"})
    tables = experiment.page().tables
    alike = dict(tables["facts that are the same in all runs"])
    assert alike["checkpoints.checkpoint.hash"] == "abc123"
    assert (alike["code.commit"], alike["machine.host"], alike["machine.memory"]) == ("c0ffee", "node-7", "2.0 GiB")
    assert tables["facts by run"] == [
        ["run", "versions.python"],
        ["0000000000000001", "3.11.7"],
        ["0000000000000002", "3.12.0"],
    ]


@pytest.mark.parametrize("out", [None, "elsewhere/a page.html"])
def test_links_lead_to_the_files_of_each_run(experiment, tmp_path, out):
    folders = [experiment.add(), experiment.add("failed", ".1", exit={"kind": "timeout", "message": "late"})]
    (folders[1] / "notebook.ipynb").unlink()
    page = experiment.page(out=out and tmp_path / out)
    links = [(page.path.parent / unquote(each["href"])).resolve() for each in page.attributes("a")]
    names = ("notebook.ipynb", "log.txt", "facts.json")
    assert links == [folders[0] / name for name in names] + [folders[1] / name for name in names[1:]]


def test_whatever_is_quoted_stays_text(experiment):
    metric = LOSS | {"meaning": EVIL, "units": EVIL}
    experiment.add(
        loss=[1.0],
        question=EVIL,
        parameters={"prompt": EVIL, EVIL: 1},
        metrics={"loss": metric},
        machine={"host": EVIL},
        versions={"python": EVIL},
    )
    experiment.add(loss=[1.0], parameters={"prompt": "b", EVIL: 2}, versions={}, figures=["<script>x<"])
    experiment.add("failed", ".1", exit={"kind": EVIL, "message": f"{EVIL}\x00\ud800"})
    page = experiment.page()
    assert page.attributes("script") == []
    assert all(each["src"].startswith("data:") for each in page.attributes("img"))
    (alt,) = [each["alt"] for each in page.attributes("img")]
    assert alt == f"Figure <script>x< of run 0000000000000002: prompt=b, {EVIL}=2, seed 0"
    assert page.text.count(EVIL) >= 9
    assert "\x00" not in page.source


def test_a_page_is_replaced_and_leaves_nothing_half_written(experiment):
    folder = experiment.add(question="First?")
    experiment.page()
    experiment.add(question="Second?")
    assert "Second?" in experiment.page().text
    beside = {each.name for each in folder.parent.iterdir() if each.is_file()}
    assert {name for name in beside if not name.endswith(".lock")} == {"report.html"}
    assert len(ql.experiments.find("exp", store=experiment.root)) == 2


def test_an_experiment_without_runs_is_an_error(experiment):
    experiment.add()
    with pytest.raises(UnknownRun, match=r"has no runs of 'other'\. It has: exp\."):
        report("other", store=experiment.root)
    assert not (experiment.root / "other").exists()


def test_a_store_that_is_no_folder_is_an_error():
    with pytest.raises(BadArgument, match=r"not from memory://runs: copy the store here first"):
        report("exp", store="memory://runs")


def test_a_page_that_would_be_a_folder_is_an_error(experiment, tmp_path):
    experiment.add()
    with pytest.raises(BadArgument, match=r"is a folder: name the page to write, such as .*report\.html"):
        report("exp", tmp_path, store=experiment.root)


@pytest.mark.slow
def test_the_page_of_a_real_run(tmp_path):
    """A failed attempt and two finished runs, as `run` leaves them."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "spec.yaml").write_text(
        "question: What is twice the size?\nnotebook: twice.py\nsweep: {grid: {size: [1, 2, 0]}}\n"
        "metrics: {twice: {units: '1', over: [layer]}}\n"
    )
    (folder / "twice.py").write_text(
        '# %% tags=["parameters"]\nsize: int = 1\n\n# %%\nimport matplotlib.pyplot as plt\nimport xarray as xr\n'
        "from qwenlab.experiments import record\n\nassert size, 'no <b>size</b>'\nfigure, axes = plt.subplots()\n"
        "axes.plot([0, size])\nvalues = xr.DataArray([2 * size, 3.0], coords={'layer': [0, 1]})\n"
        "record(twice=values, figures={'line': figure})\n"
    )
    result = ql.experiments.run(folder, store=tmp_path / "store")
    assert [each.state for each in result.outcomes] == ["finished", "finished", "failed"]
    page = Page(report("small", store=tmp_path / "store"))
    assert [row[:2] for row in page.tables["twice by label"]] == [["layer", "size=1"], ["0", "2"], ["1", "3"]]
    assert "AssertionError: no <b>size</b>" in page.tables["runs that did not finish"][1][2]
    figures = [Path(each.where) / "figures" / "line.png" for each in result.of("finished")]
    assert [base64.b64decode(each["src"].partition(",")[2]) for each in page.attributes("img")] == [
        each.read_bytes() for each in figures
    ]
