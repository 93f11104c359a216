"""What cannot be streamed is an error that says why, and a file that changes is noticed before it is read."""

import os
import shutil

import pytest
import torch

import qwenlab as ql
from qwenlab.checkpoint.caches import cached_by
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.streaming.cost import streaming_cost
from qwenlab.checkpoint.streaming.refusals import refuse_decoding
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.errors import BadArgument, CannotStream, MemoryTooSmall, WeightsChanged
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.checkpoint.changing import change_tensors
from tests.checkpoint.streaming.conftest import TOKENS, logits, smallest


def test_generate_and_drafting_are_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5")
    checkpoint = ql.open(folder, memory=smallest(folder))
    with pytest.raises(CannotStream, match=r"each new token would read .* of layers again"):
        checkpoint.model.generate(TOKENS)
    with pytest.raises(CannotStream, match=r"ql\.speculative\.trace"):
        ql.speculative.generate(checkpoint, [[1, 2, 3]], depth=2, progress=False)
    with pytest.raises(CannotStream):
        ql.speculative.step_times(checkpoint, [1] * 40, depth=1, progress=False)
    refuse_decoding(ql.open(folder).model)


@torch.no_grad()
def test_a_loop_over_single_tokens_is_refused_at_its_second_step(streamed):
    cache = cached_by(streamed.model)
    streamed.model(TOKENS, **cache)
    streamed.model(TOKENS[:, :1], **cache)  # the last token of a text that is read in chunks
    with pytest.raises(CannotStream, match="each new token"):
        streamed.model(TOKENS[:, :1], **cache)


def test_gradients_are_refused(streamed):
    with pytest.raises(CannotStream, match="cannot run with gradients"):
        streamed.model(inputs_embeds=torch.zeros(1, 3, 256, requires_grad=True))
    streamed.model.requires_grad_(True)
    with pytest.raises(CannotStream, match="cannot run with gradients"):
        streamed.model(TOKENS)


def test_an_edited_matrix_is_refused_and_has_another_hash(streamed):
    with torch.no_grad():
        decoder_of(streamed.model).layers[1].mlp.up_proj.weight.mul_(2)
    assert streamed.hash_now() != streamed.facts.hash
    with pytest.raises(CannotStream, match="was changed in memory, and layer 1"):
        logits(streamed.model)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"device_map": "auto"}])
def test_other_devices_are_refused(folder, options):
    with pytest.raises(CannotStream, match="to the CPU only; got device"):
        ql.open(folder, memory="1GiB", **options)


def test_quantised_weights_are_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", fp8=True)
    with pytest.raises(CannotStream, match="has weights in fp8"):
        ql.open(folder, memory="1GiB")


def test_a_stored_head_that_the_config_ties_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", layout="flat", tie_word_embeddings=True, shards=1, mtp=None)
    change_tensors(folder, lambda t: t.update({"lm_head.weight": next(iter(t.values())).new_zeros(288, 64)}))
    with pytest.raises(CannotStream, match="the files contain both"):
        ql.open(folder, memory="1GiB")


def test_a_token_outside_the_embedding_is_an_index_error(streamed):
    with pytest.raises(IndexError, match="token 300 is not in the embedding of 288 rows"):
        logits(streamed.model, torch.tensor([[1, 300]]))


def test_the_smallest_budget_works_and_one_byte_less_does_not(folder):
    least = smallest(folder)
    logits(ql.open(folder, memory=least).model)
    with pytest.raises(MemoryTooSmall, match=f"Give {least:,} bytes"):
        ql.open(folder, memory=least - 1)


def _replace(file):
    shutil.copy(file, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def _truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def _grow(file):
    with file.open("ab") as end:
        end.write(b"more")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replace, "was replaced or written"),
        (_truncate, "bytes instead of"),
        (_grow, "bytes instead of"),
        (os.unlink, "cannot be read any more"),
    ],
)
def test_a_file_that_changes_is_noticed(folder, streamed, change, message):
    logits(streamed.model)
    change(sorted(folder.glob("*.safetensors"))[-1])
    with pytest.raises(WeightsChanged, match=message):
        logits(streamed.model)


def test_the_cost_is_known_before_a_run(folder, streamed):
    cost = streaming_cost(streamed, context=19, batch=2, passes=3)
    assert cost.bytes_read >= 3 * 0.9 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert cost.flops == 3 * streamed.anatomy.flops(context=19, batch=2).total
    assert cost.read_seconds == cost.bytes_read / cost.disk.bytes_per_second > 0
    text = str(cost)
    assert text.startswith("3 passes: ") and "GB/s (measured over" in text and "peak memory" in text
    with pytest.raises(BadArgument, match="is in memory and reads nothing"):
        streaming_cost(ql.open(folder), context=19)


def test_the_checkpoint_says_that_it_is_streamed(folder):
    assert "float32 on cpu, streamed within 1.00 GiB, without MTP head" in repr(ql.open(folder, memory="1GiB"))


def test_passes_that_go_through_the_layers_together_read_them_once(streamed):
    cost = streaming_cost(streamed, context=19, batch=2, passes=3, together=True)
    layers = streamed_layers(streamed.model).layers
    channels, itemsize = streamed.model.config.hidden_size, streamed.model.dtype.itemsize
    assert cost.bytes_read == sum(layer.stored_bytes for layer in layers) + 3 * 2 * 19 * channels * itemsize
    flops = streamed.anatomy.flops(context=19, batch=2)
    assert cost.flops == 3 * (flops.total - flops.parts["lm_head"])
    assert "3 passes, layer by layer: " in str(cost) and "of hidden states" in str(cost)
