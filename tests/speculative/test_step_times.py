"""Step times: every kind of step takes time, and the experts are those of the router."""

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadPrompt
from qwenlab.speculative import RerunRollback, generate, step_times


@pytest.fixture(scope="module")
def text(dense):
    return dense.tokenizer("\n".join(ql.tasks.texts("code", 2)))["input_ids"][:160]


@pytest.fixture(scope="module")
def costs(text):
    return step_times(ql.open("toy-moe"), text, depth=2, context=64, repeats=6, progress=False)


def test_each_cost_is_a_time_with_its_quartiles(costs):
    assert costs["width"].values.tolist() == [1, 2, 3]
    for name in ("plain_step", "draft_step", "rollback", "overhead", "verify_step"):
        assert costs[name].attrs["units"] == "s"
        low, middle, high = costs[f"{name}_quantiles"].transpose("quantile", ...).values
        assert (low > 0).all()
        assert (low <= middle).all()
        assert (middle <= high).all()
        assert (costs[name].values == middle).all()
    assert float(costs["plain_step"]) == float(costs["verify_step"].sel(width=1))
    assert float(costs["draft_step"]) < float(costs["plain_step"])  # one layer of eight
    assert (costs.attrs["rollback"], costs.attrs["context"], costs.attrs["threads"]) == ("replay", 64, 1)


def test_speedup_accepts_step_times(costs, prompts, dense):
    made = generate(dense, prompts(dense), depth=2, max_new_tokens=12, progress=False)
    found = ql.stats.speedup(made.ledger, costs)
    assert np.isfinite(found["speedup"]).all()
    assert np.isfinite(found["measured_speedup"].sel(depth=2))
    assert (found["block_bytes"] > found["plain_bytes"]).all()


def test_the_experts_are_those_the_router_chose(costs, text):
    model = ql.open("toy-moe").model
    with torch.no_grad():
        logits = model(torch.tensor([text]), output_router_logits=True).router_logits
    top = costs.sizes["slot"]
    for layer, each in enumerate(logits):
        chosen = each.topk(top).indices.sort().values.numpy()
        assert (np.sort(costs["expert_choice"].sel(layer=layer).values) == chosen).mean() > 0.999  # ties
    assert costs.attrs["moe_layers"] == 8
    experts = model.model.layers[0].mlp.experts
    assert costs.attrs["bytes_per_expert"] == sum(p.nbytes for p in experts.parameters()) / 16


def test_the_other_rollback_is_timed_too(dense, text):
    found = step_times(dense, text, depth=1, context=64, repeats=3, rollback=RerunRollback, progress=False)
    assert found.attrs["rollback"] == "snapshot-and-rerun"
    assert "expert_choice" not in found
    assert float(found["rollback"]) > float(found["draft_step"])  # a forward pass of the target model


def test_default_context_and_repeats_fit_the_text(dense, text):
    """Half of the text is context, and the repeats fit into the other half."""
    found = step_times(dense, text[:40], depth=1, progress=False)
    assert found.attrs["context"] == 20
    assert step_times(dense, text[:8], depth=1, progress=False).attrs["context"] == 4


def test_a_text_that_is_too_short(dense):
    with pytest.raises(BadPrompt, match=r"has 5 tokens, and 1 repeats of 3 widths after a context of 2 need 8"):
        step_times(dense, [5] * 5, depth=2)
    with pytest.raises(BadPrompt, match=r"has 50 tokens, and 4 repeats of 3 widths after a context of 64 need 79"):
        step_times(dense, [5] * 50, depth=2, context=64, repeats=4)
