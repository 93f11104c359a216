"""Decoding in several threads, with one checkpoint per thread or a shared one."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import qwenlab as ql
from qwenlab.speculative import RerunRollback, generate, trace
from qwenlab.speculative.rollback import ReplayRollback

ROUNDS = 4


@pytest.fixture(scope="module")
def two():
    return ql.open("toy-dense"), ql.open("toy-dense")


@pytest.mark.slow
@pytest.mark.parametrize("rollback", [ReplayRollback, RerunRollback])
@pytest.mark.parametrize("shared", [False, True], ids=["two checkpoints", "one checkpoint"])
def test_two_threads_decode_like_one(two, impatient, shared, rollback):
    checkpoints = (two[0], two[0]) if shared else two
    prompts = [ckpt.tokenizer(text)["input_ids"][:20] for ckpt, text in zip(two, ql.tasks.texts("code"), strict=False)]
    alone = [_decoded(*each, rollback) for each in zip(checkpoints, prompts, strict=True)]
    for _ in range(ROUNDS):
        assert _together(lambda *each: _decoded(*each, rollback), checkpoints, prompts) == alone


def test_two_threads_trace_one_checkpoint(two, impatient):
    prompts = [two[0].tokenizer(text)["input_ids"][:120] for text in ql.tasks.texts("code")[:2]]

    def drafts(checkpoint, prompt):
        return trace(checkpoint, [prompt], depth=3, progress=False).dataset["draft_token"].values.tolist()

    alone = [drafts(two[0], prompt) for prompt in prompts]
    for _ in range(ROUNDS):
        assert _together(drafts, (two[0], two[0]), prompts) == alone


def _decoded(checkpoint, prompt, rollback):
    made = generate(checkpoint, [prompt], depth=3, max_new_tokens=24, rollback=rollback, progress=False)
    return [list(map(int, tokens)) for tokens in made.tokens]


def _together(work, checkpoints, prompts):
    """Results of work(checkpoint, prompt), each in its own thread, all started together."""
    start = Barrier(len(prompts))

    def begin(*each):
        start.wait(30)
        with torch.no_grad():
            return work(*each)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(begin, checkpoints, prompts))
