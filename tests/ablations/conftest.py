"""Tiny random checkpoints that the tests share; none of them may be changed."""

import pytest
import torch

import qwenlab as ql
from qwenlab.tasks import Task
from qwenlab.testing.checkpoints import tiny_checkpoint

FAMILIES = {
    "dense": dict(family="qwen3_5", num_key_value_heads=1, linear_num_key_heads=4, linear_num_value_heads=8),
    "moe": dict(family="qwen3_5_moe"),
    "next": dict(family="qwen3_next", layout="flat", mlp_only_layers=[1], norm_topk_prob=False),
}


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """opened(name) -> the checkpoint of a family: three DeltaNet layers, then one of attention."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = ql.open(tiny_checkpoint(tmp_path_factory.mktemp(name), **FAMILIES[name]))
        return known[name]

    return get


@pytest.fixture(scope="session", params=FAMILIES)
def checkpoint(request, opened):
    """Each family."""
    return opened(request.param)


@pytest.fixture(scope="session")
def moe(opened):
    return opened("moe")


@pytest.fixture(scope="session")
def tasks():
    return drawn_tasks()


def drawn_tasks():
    """Two tasks, of sequences of different lengths: every token asked for, and some of few answers."""

    def drawn(lengths, seed):
        generator = torch.Generator().manual_seed(seed)
        return tuple(tuple(torch.randint(1, 250, (length,), generator=generator).tolist()) for length in lengths)

    plain, recall = drawn((14, 9, 11), 0), drawn((12, 12), 1)
    return [
        Task("plain", plain, tuple(tuple(range(1, len(each))) for each in plain)),
        Task("recall", recall, ((7, 11), (5, 9)), 0.25),
    ]
