"""A sweep over a checkpoint that is read from its files: the scores of the model in memory, from one reading."""

import pytest
import xarray as xr

import qwenlab as ql
from qwenlab.ablations import streamed_scoring
from qwenlab.checkpoint.streaming.stream import streamed_layers

TEXTS = ["A red ball.", "Two trains left at noon, and one of them never came.", "def f(x): return x + 1"]


def _swept(checkpoint: ql.checkpoint.Checkpoint) -> xr.Dataset:
    units = [*ql.ablations.units(checkpoint), *ql.ablations.units(checkpoint, of="mlp")]
    ablations = [*units, *ql.ablations.controls(units[:1], units, number=2, progress=False)]
    tasks = [ql.tasks.text_task(checkpoint, TEXTS, max_tokens=24)]
    return ql.ablations.sweep(checkpoint, ablations, tasks, batch_size=2, progress=False)


@pytest.fixture(scope="module")
def resident() -> xr.Dataset:
    return _swept(ql.open("toy-dense"))


@pytest.mark.parametrize("most_calls", [1024, 20])
def test_scores_are_those_of_the_model_in_memory(
    resident: xr.Dataset, most_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed_scoring, "MOST_CALLS", most_calls)
    streamed = _swept(ql.open("toy-dense", memory="64MiB", dtype="float32"))
    xr.testing.assert_equal(streamed, resident)


def test_all_ablations_read_the_files_once() -> None:
    checkpoint = ql.open("toy-dense", memory="64MiB")
    stream = streamed_layers(checkpoint.model)
    assert stream is not None
    before = stream.bytes_read
    _swept(checkpoint)
    assert stream.bytes_read - before == sum(unit.stored_bytes for unit in (*stream.layers, *stream.head))


def test_under_other_interventions_every_layer_runs(resident: xr.Dataset) -> None:
    swept = []
    for checkpoint in (ql.open("toy-dense"), ql.open("toy-dense", memory="64MiB", dtype="float32")):
        with ql.intervene(checkpoint, ql.interventions.Zero("layers.1.mlp")):
            swept.append(_swept(checkpoint))
    xr.testing.assert_equal(*swept)
    assert not swept[0]["clean_loss"].equals(resident["clean_loss"])


def test_workers_are_an_error() -> None:
    checkpoint = ql.open("toy-dense", memory="64MiB")
    with pytest.raises(ql.errors.BadArgument, match="by one process"):
        ql.ablations.sweep(
            checkpoint, ql.ablations.units(checkpoint), [ql.tasks.text_task(checkpoint, TEXTS)], workers=2
        )


def test_losses_are_those_of_the_model_in_memory() -> None:
    found = [ql.tasks.losses(c, TEXTS) for c in (ql.open("toy-dense"), ql.open("toy-dense", memory="12MiB"))]
    xr.testing.assert_equal(*found)
