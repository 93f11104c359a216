"""`feed` with a checkpoint that is read from its files: the same measurements, and one reading for all texts."""

import pytest
import xarray as xr

import qwenlab as ql
from qwenlab.checkpoint.streaming.stream import streamed_layers

TEXTS = ["A red ball.", "Two trains left at noon, and one of them never came.", "def f(x): return x + 1", "ab"]


def _recording(checkpoint: ql.checkpoint.Checkpoint) -> ql.Recording:
    with ql.watch(checkpoint, ql.probes.DeltaNet(), ql.probes.Attention(), ql.probes.Residual()) as seen:
        ql.tasks.feed(checkpoint, TEXTS, batch_size=2)
    return seen.recording()


@pytest.mark.parametrize("memory", ["4GiB", "12MiB"])
def test_measurements_are_those_of_the_model_in_memory(memory: str) -> None:
    resident = ql.open("toy-dense")
    dtype = str(resident.model.dtype).removeprefix("torch.")
    ours, theirs = _recording(ql.open("toy-dense", memory=memory, dtype=dtype)), _recording(resident)
    for node in theirs:
        xr.testing.assert_equal(ours[node], theirs[node])
    assert ours.attrs["prompts_hash"] == theirs.attrs["prompts_hash"]


def test_layers_are_read_once_for_all_texts() -> None:
    checkpoint = ql.open("toy-dense", memory="4GiB")
    stream = streamed_layers(checkpoint.model)
    assert stream is not None
    before = stream.bytes_read
    ql.tasks.feed(checkpoint, TEXTS, batch_size=1)
    assert stream.bytes_read - before == sum(layer.stored_bytes for layer in stream.layers)


def test_decoding_is_an_error() -> None:
    with pytest.raises(ql.errors.BadArgument, match="read anew for each of these tokens"):
        ql.tasks.feed(ql.open("toy-dense", memory="4GiB"), TEXTS, decode=2)
