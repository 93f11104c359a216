"""Noise of reading in blocks: every position takes every place of a block, and its competing tokens give the noise."""

import numpy as np
import pytest
import torch

from qwenlab.speculative.lossless.noise import COMPETITORS, BlockReaders, PositionNoise, pooled
from qwenlab.speculative.lossless.reference import ReferenceReader


def test_tokens_within_one_nat_of_the_best_compete():
    noise = PositionNoise.of(torch.tensor([0.0, 10.0, 9.5, 9.0, 8.9]), torch.float32)
    assert noise.tokens.tolist() == [1, 2, 3]
    assert noise.gaps.tolist() == [0.0, 0.5, 1.0]


def test_the_noise_is_the_change_of_the_gap_to_the_best():
    """A shift of all logits changes no choice and is not noise; neither is a change of a token far below."""
    noise = PositionNoise.of(torch.tensor([0.0, 10.0, 9.5]), torch.float32)
    assert noise.largest == 0
    noise.add(torch.tensor([9.0, 13.0, 12.5]))
    assert noise.largest == 0
    noise.add(torch.tensor([0.0, 10.0, 9.75]))
    noise.add(torch.tensor([0.0, 10.0, 9.375]))
    assert noise.largest == 0.25
    assert [change.tolist() for change in noise.changes] == [[0, 0], [0, 0.25], [0, 0.125]]


@pytest.mark.parametrize("logit", [0.3, 1.0, 7.9, 8.0, 15.0, 16.0, 100.0])
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 0), (torch.float16, 13), (torch.bfloat16, 16)])
def test_step_is_the_spacing_of_logits_of_this_size(logit, dtype, bits):
    noise = PositionNoise.of(torch.tensor([logit, -1.0]), dtype)
    assert noise.step == np.spacing(np.float32(logit)) * 2**bits  # a mantissa of fewer bits


def test_only_the_likeliest_tokens_of_a_flat_distribution_are_compared():
    assert len(PositionNoise.of(torch.zeros(10 * COMPETITORS), torch.float32).tokens) == COMPETITORS


def test_pooled_is_a_quantile_over_positions_without_the_best_tokens():
    positions = [PositionNoise.of(torch.tensor([1.0, 1.0]), torch.float32) for _ in range(100)]
    assert pooled(positions) == 0
    for number, position in enumerate(positions):
        position.add(torch.tensor([1.0, 1.0 + number]))
    assert pooled(positions) == pytest.approx(98.01)


@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("new", [1, 4, 11])
@torch.no_grad()
def test_every_reading_has_every_position_once(dense, prompts, width, new):
    tokens = torch.tensor(prompts(dense, 1, 20 + new)[0])
    reference = ReferenceReader(dense.require_mtp(), tokens[:20])
    readings = BlockReaders(reference, tokens[:20], width)
    seen = [readings.newest]
    widths: dict[int, list[int]] = {number: [] for number in range(width)}
    for number, reader in enumerate(readings._readers):
        reader.read = lambda block, number=number, read=reader.read: (widths[number].append(len(block)), read(block))
    for token in tokens[20:].split(1):
        reference.read(token)
        readings.follow(token)
        seen.append(readings.newest)
    readings.finish()
    assert all(sum(blocks) == new and max(blocks) <= width for blocks in widths.values())
    begins = {sum(blocks[:1]) % width for blocks in widths.values()}
    assert len(begins) == min(width, new)  # they differ in where their blocks begin
    assert seen[0].changes == []  # the prompt is read in one way only
    assert all(len(noise.changes) == width for noise in seen[1:])
    assert max(noise.largest for noise in seen) < 1e-4  # of float32
    assert readings.states["position"] == 0
    assert max(readings.states.values()) < 1e-5
