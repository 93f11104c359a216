"""A profile: the recording and the figures of what a checkpoint reads."""

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.recipes import profile
from qwenlab.tasks import texts

SMALL = dict(max_tokens=24, decode=4, progress=False)


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-moe")


@pytest.mark.slow
def test_leaves_a_recording_and_its_figures(toy, tmp_path):
    done = profile(
        toy, {"code": texts("code", 2), "long": " ".join(texts("prose", 2))}, tmp_path / "new", passages=3, **SMALL
    )
    recording = ql.Recording.open(done.recording)
    assert sorted(recording) == ["attention", "deltanet", "memory", "residual", "routing", "timing"]
    tokens = recording["routing"]["tokens"].isel(layer=0).sum("fold")
    assert tokens.sel(label="code") == 2 * 24
    assert abs(tokens.sel(label="long") - 3 * 24) <= 3
    assert recording["timing"]["tokens"].sel(phase="decode") == 2 * 4
    assert {figure.stem for figure in done.figures} >= {"layers", "half_life", "specialisation", "memory_by_context"}
    assert all(figure.parent == done.folder and figure.stat().st_size > 5_000 for figure in done.figures)


def test_a_figure_that_compares_is_left_out_where_there_is_nothing_to_compare(toy, tmp_path):
    done = profile(toy, {"code": texts("code", 2)}, tmp_path, probes=["routing"], **SMALL)
    assert list(ql.Recording.open(done.recording)) == ["routing"]
    assert {figure.stem for figure in done.figures} == {"layers", "expert_load", "coactivation"}


@pytest.mark.slow
def test_a_dense_checkpoint_has_no_routing(tmp_path):
    done = profile("toy-dense", {"code": texts("code", 2)}, tmp_path, **SMALL)
    assert "routing" not in ql.Recording.open(done.recording)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(BadArgument, match="give at least one label and its texts"):
        profile("toy-moe", {}, tmp_path)


@pytest.mark.parametrize(("probes", "named"), [(["rooting", "timing"], "'rooting'"), ([], "none")])
def test_an_unknown_probe_is_an_error_before_anything_is_opened(tmp_path, probes, named):
    with pytest.raises(
        BadArgument, match=rf"probes: {named} is not the name of a probe\.\nChoose among deltanet, .*attention"
    ):
        profile("no such checkpoint", {"code": ["x"]}, tmp_path, probes=probes)


@pytest.mark.slow
def test_a_checkpoint_bigger_than_memory_is_read_once_per_label(tmp_path, capsys):
    short = {"prose": ["A red ball.", "Two trains left at noon."], "code": ["def f(x): return x + 1"]}
    done = profile("toy-dense", short, tmp_path, memory="12MiB", max_tokens=32)
    recording = ql.Recording.open(done.recording)
    assert "memory" not in recording and recording.attrs["tokens"] > 0
    printed = capsys.readouterr().out
    assert "prose: 1 pass, layer by layer: " in printed and "peak memory" in printed


def test_the_memory_probe_needs_caches(tmp_path):
    with pytest.raises(BadArgument, match="read without them"):
        profile("toy-dense", {"a": ["b"]}, tmp_path, probes=["memory"], memory="12MiB")
