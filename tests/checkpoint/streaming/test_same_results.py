"""A streamed checkpoint gives the results of the same checkpoint in memory, bit for bit."""

import pytest
import torch
from torch.profiler import profile

import qwenlab as ql
from qwenlab.checkpoint.streaming import budget
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.checkpoint.streaming.conftest import TOKENS, logits, smallest

LAYOUTS = [
    ("qwen3_5", {"float32_decay": True, "dtype": "bfloat16"}),
    ("qwen3_5", {"layout": "flat", "tie_word_embeddings": True}),
    ("qwen3_5_moe", {"experts": "each", "shards": 3, "mtp": "each"}),
    ("qwen3_5_moe", {"dtype": "bfloat16"}),
    ("qwen3_next", {"layout": "flat", "experts": "each"}),
    ("olmo_hybrid", {"layout": "flat", "mtp": None}),
]
TEXTS = ["the state reads the key and the query", "the gate writes " * 5]


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_logits_config_and_facts_are_the_same(tmp_path, family, layout, dtype):
    folder = tiny_checkpoint(tmp_path, family, **layout)
    whole, least = ql.open(folder, dtype=dtype), smallest(folder, dtype=dtype)
    for memory in (least, "1GiB"):
        streamed = ql.open(folder, dtype=dtype, memory=memory)
        assert torch.equal(logits(streamed.model), logits(whole.model))
    assert streamed.model.config.to_dict() == whole.model.config.to_dict()
    assert streamed.model.generation_config.to_dict() == whole.model.generation_config.to_dict()
    assert [p.dtype for p in streamed.model.parameters()] == [p.dtype for p in whole.model.parameters()]
    assert (streamed.facts, streamed.hash_now()) == (whole.facts, whole.facts.hash)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_recordings_losses_and_drafts_are_the_same(tmp_path, family):
    folder = tiny_checkpoint(tmp_path, family, layer_types=["linear_attention", "full_attention"], experts="each")
    results = []
    for checkpoint in (ql.open(folder), ql.open(folder, memory=smallest(folder))):
        found = {"losses": ql.tasks.losses(checkpoint, TEXTS)}
        found["drafts"] = ql.speculative.trace(checkpoint, TEXTS, depth=2, chunk=8, progress=False).dataset
        for choose in (ql.probes.defaults, ql.probes.thorough):
            with torch.no_grad(), ql.watch(checkpoint, *choose(checkpoint)) as seen:
                checkpoint.model(TOKENS)
            recording = seen.recording()
            found |= {(choose.__name__, node): recording[node] for node in recording if node != "timing"}
            found[choose.__name__] = recording.attrs
        with torch.no_grad(), ql.intervene(checkpoint, ql.interventions.Zero("layers.1.mixer")):
            found["without a mixer"] = checkpoint.model(TOKENS).logits
        results.append(found)
    for name, whole in results[0].items():
        streamed = results[1][name]
        equal = {dict: dict.__eq__, torch.Tensor: torch.equal}.get(type(whole), lambda a, b: a.identical(b))
        assert equal(whole, streamed), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
def test_a_head_in_slices_is_the_whole_product(tmp_path, monkeypatch, dtype, tokens):
    """Sums of a logit run over the channels, in an order that does not depend on the number of rows."""
    x, weight = torch.randn(1, tokens, 256).to(dtype), torch.randn(6000, 256).to(dtype)
    whole = torch.nn.functional.linear(x, weight)
    for rows in (1024, 4096):
        slices = [torch.nn.functional.linear(x, part) for part in weight.split(rows)]
        assert torch.equal(torch.cat(slices, dim=-1), whole)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_head_that_does_not_fit_is_read_in_slices(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(budget, "SLICE", 512)
    folder = tiny_checkpoint(tmp_path, "qwen3_5", mtp=None, vocab_size=5000)
    streamed = ql.open(folder, dtype=dtype, memory=smallest(folder, dtype=dtype))
    assert len(streamed_layers(streamed.model).head) == 10
    assert torch.equal(logits(streamed.model), logits(ql.open(folder, dtype=dtype).model))


def test_the_last_logits_need_one_product(folder):
    """They are of a slice of the hidden states, for which torch would copy the weights for each row of a batch."""
    model = ql.open(folder, memory=smallest(folder)).model
    with torch.no_grad(), profile() as profiled:
        model.lm_head(torch.zeros(2, 19, model.config.hidden_size)[:, -1:].to(model.dtype))
    assert not [each.key for each in profiled.key_averages() if each.key == "aten::bmm"]
