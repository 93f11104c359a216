"""Bytes of the caches: measured as the anatomy predicts, at contexts far enough apart."""

import numpy as np
import pytest
import torch

from qwenlab.probes import Memory
from qwenlab.testing.models import tiny_model
from tests.probes.feeding import in_pieces, one_by_one, padded, recorded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid"])
def test_what_is_measured_is_what_was_predicted(family, dtype, text):
    model = tiny_model(family).to(dtype)
    result = recorded(model, in_pieces([text(50), text(40)], (20, 1, 9)), Memory())["memory"]
    np.testing.assert_array_equal(result["measured_bytes"].values, result["predicted_bytes"].values)
    assert result["store"].values.tolist() == ["kv", "recurrent", "convolution"]
    assert (result["measured_bytes"].values > 0).all()
    assert result["context"].values.tolist() == [20, 30, 50]
    assert result["batch"].values.tolist() == [2] * 3


def test_hand_counted_bytes(moe, text):
    result = recorded(moe, padded([text(7)], "left"), Memory())["memory"]
    kv = 2 * 2 * 32 * 4 * 7  # keys and values, 2 heads of 32 channels, 4 bytes, in one layer
    recurrent = 3 * 4 * 16 * 16 * 4  # 3 layers of 4 heads
    convolution = 3 * (2 * 2 * 16 + 4 * 16) * 4 * 4  # of queries, keys and values, 4 columns
    assert result["measured_bytes"].values.tolist() == [[kv, recurrent, convolution]]


def test_contexts_are_a_quarter_of_an_octave_apart_and_few(small, text):
    result = recorded(small, in_pieces([text(150)], (1,)), Memory())["memory"]
    context = result["context"].values
    assert (context[1:] >= context[:-1] * 2**0.25).all()
    assert context[0] == 1
    assert context[-1] > 150 / 2**0.25
    assert len(context) < 64


def test_without_a_cache_there_is_nothing(small, text):
    result = recorded(small, one_by_one([text(9)]), Memory())["memory"]
    assert result["measured_bytes"].shape == (0, 3)
    assert result["context"].shape == (0,)
