"""Watching a training loop that somebody else wrote."""

import dataclasses

import pytest
import torch
from torch import nn

import qwenlab as ql
from qwenlab.probes import defaults
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import one_by_one, recorded, thorough


class Classifier(nn.Module):
    """Their own model object: a head on the mean of a language model's last hidden states."""

    def __init__(self):
        super().__init__()
        self.language = tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"])
        torch.manual_seed(0)
        self.head = nn.Linear(64, 3)

    def forward(self, tokens, mask):
        hidden = self.language.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def batches():
    drawn = torch.Generator().manual_seed(1)
    for _ in range(4):
        mask = torch.ones(3, 12, dtype=torch.long)
        mask[1, 8:] = 0
        yield torch.randint(1, 280, (3, 12), generator=drawn), mask, torch.randint(0, 3, (3,), generator=drawn)


def train(model, around=None):
    """Four steps, the second and the third inside `around`; returns the gradients of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    gradients = []

    def step(tokens, mask, label):
        loss = nn.functional.cross_entropy(model(tokens, mask), label)
        optimizer.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.step()

    first, *watched, last = batches()
    step(*first)
    if around is None:
        for batch in watched:
            step(*batch)
    else:
        with around:
            for batch in watched:
                step(*batch)
    step(*last)
    return gradients


def test_their_loop_takes_the_same_steps_and_is_seen():
    bare, watched = Classifier(), Classifier()
    probes = defaults(watched)
    seen = ql.watch(watched, *probes)
    for one, other in zip(train(bare), train(watched, seen), strict=True):
        assert len(one) > 20
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    recording = seen.recording()
    assert recording.attrs["tokens"] == 2 * (12 + 8 + 12)
    assert recording.attrs["sequences"] == 6
    assert int(recording["routing"]["load"].sel(layer=0).sum()) == 2 * 64
    assert recording["timing"]["calls"].sel(phase="prefill").values.tolist() == [2, 2]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_nothing_twice(text, reentrant):
    def gradients(model, watching=False):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        ids = torch.stack([text(20), text(20, 1)])
        probes = thorough(model)
        seen = ql.watch(model, *probes)
        if watching:
            with seen:
                model(ids, labels=ids).loss.backward()
        else:
            model(ids, labels=ids).loss.backward()
        return seen, [p.grad for p in model.parameters() if p.grad is not None]

    seen, watched = gradients(tiny_model("qwen3_5_moe"), watching=True)
    _, bare = gradients(tiny_model("qwen3_5_moe"))
    assert all(torch.equal(a, b) for a, b in zip(watched, bare, strict=True))
    plain = recorded(tiny_model("qwen3_5_moe"), one_by_one([text(20), text(20, 1)]))
    assert_same(seen.recording(), plain)


def tensors_of(value):
    """The tensors of a captured value: itself, or the fields of a call."""
    return [getattr(value, field.name) for field in dataclasses.fields(value)] if hasattr(value, "joined") else [value]


def test_the_graph_is_not_kept(small, text):
    """Decode steps that wait to be reduced together keep no graph alive."""
    with ql.watch(small, *thorough(small)) as seen:
        cache = None
        for token in text(6):
            cache = small(token[None, None], past_key_values=cache, use_cache=True).past_key_values
        captured = [value for buffer in seen._dispatcher.buffers for step in buffer.steps for value in step.values()]
        tensors = [tensor for value in captured for tensor in tensors_of(value)]
        assert captured
        assert not any(isinstance(value, torch.Tensor) and value.requires_grad for value in tensors)
