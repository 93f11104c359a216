"""Which pages of the files are in memory: those of the layer that runs and of the next one, and none afterwards."""

import pytest
import torch

import qwenlab as ql
from qwenlab.capture.wrapping import outputs
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.streaming.shard_file import FAULT_AROUND, Piece
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.checkpoint.streaming.conftest import TOKENS, logits, smallest


def mapped(folder):
    """Bytes of the files of a folder that are in this process's memory."""
    size, own = 0, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            name, _, rest = line.partition(" ")
            if not name.endswith(":"):
                own = str(folder) in line
            elif own and name == "Rss:":
                size += int(rest.split()[0]) * 1024
    return size


def while_layers_run(checkpoint, measure):
    """What `measure` gives in the middle of each layer of a pass."""
    decoder, found = decoder_of(checkpoint.model), []
    for layer in range(len(decoder.layers)):
        hook = outputs(decoder.mixer(layer), lambda *_: found.append(measure()))
        with hook, torch.no_grad():
            checkpoint.model(TOKENS)
    return found


def test_one_layer_is_in_memory_with_the_smallest_budget(folder, streamed):
    stream = streamed_layers(streamed.model)
    for size, layer in zip(while_layers_run(streamed, lambda: mapped(folder)), stream.layers, strict=True):
        assert layer.stored_bytes <= size <= layer.nbytes + 2 * FAULT_AROUND
    assert mapped(folder) == 0


def test_at_most_two_layers_are_in_memory_where_the_budget_allows_it(folder):
    checkpoint = ql.open(folder, memory="1GiB")
    stream = streamed_layers(checkpoint.model)
    found = while_layers_run(checkpoint, lambda: mapped(folder))
    assert max(layer.nbytes for layer in stream.layers) < max(found) <= stream.peak - stream.always + 2 * FAULT_AROUND
    assert mapped(folder) == 0


def test_a_layer_stays_present_inside_its_block(folder, streamed):
    stream = streamed_layers(streamed.model)
    with stream.present(1):
        before = stream.bytes_read
        with stream.present(1):
            pass
        assert mapped(folder) >= stream.layers[1].stored_bytes
        assert stream.bytes_read == before == stream.layers[1].stored_bytes
    assert mapped(folder) == 0


def test_a_pass_reads_each_layer_once(streamed):
    stream = streamed_layers(streamed.model)
    logits(streamed.model)
    assert stream.bytes_read == sum(unit.stored_bytes for unit in (*stream.layers, *stream.head))


def test_a_matrix_that_is_converted_is_nan_outside_its_layer(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", mtp=None, dtype="bfloat16")
    checkpoint = ql.open(folder, dtype="float32", memory=smallest(folder, dtype="float32"))
    weight = decoder_of(checkpoint.model).layers[0].mlp.up_proj.weight
    assert weight.isnan().all()
    with streamed_layers(checkpoint.model).present(0):
        assert torch.equal(weight, ql.open(folder).model.model.layers[0].mlp.up_proj.weight.float())
    assert weight.isnan().all()


def test_a_matrix_in_place_can_be_read_at_any_time(folder, streamed):
    whole = ql.open(folder).model
    for name, parameter in streamed.model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


def test_a_model_in_memory_has_no_stream(folder):
    assert streamed_layers(ql.open(folder).model) is None


def test_pieces_cover_whole_pages():
    assert Piece(None, torch.float32, 4090, 4100).pages == 8192


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_pass_leaves_the_model_usable(folder, interrupt):
    checkpoint = ql.open(folder, memory="1GiB")
    expected = logits(checkpoint.model)

    def stop(*_):
        raise interrupt

    with outputs(decoder_of(checkpoint.model).mixer(2), stop), pytest.raises(interrupt):
        logits(checkpoint.model)
    assert mapped(folder) == 0
    assert torch.equal(logits(checkpoint.model), expected)
