"""The probes and the intervention of docs/extending.md, outside the package, are right in every way of reading."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import SiteNotReached
from tests.probes import by_hand
from tests.probes.compare import assert_same
from tests.probes.feeding import batch, in_pieces, one_by_one, padded, recorded

PAGE = (Path(__file__).parents[1] / "docs/extending.md").read_text()
CODE = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def page():
    """The names of the page, after its code has run as it is printed."""
    names = {"__name__": "extending"}
    exec(compile(CODE, "docs/extending.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def model(page):
    return page["model"].eval()


@pytest.fixture(scope="module")
def texts():
    numbers = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (length,), generator=numbers) for length in (21, 9, 14)]


FEEDS = {
    "prefill": one_by_one,
    "decode": lambda texts: in_pieces(texts, [1] * 30),
    "pieces": lambda texts: in_pieces(texts, [5, 1, 1, 8, 1, 5]),
    "right padding": lambda texts: padded(texts, "right"),
    "left padding": lambda texts: padded(texts, "left"),
}


@pytest.mark.parametrize("feed", FEEDS)
def test_the_state_probe_is_a_loop_over_tokens(page, model, texts, feed):
    data = recorded(model, FEEDS[feed](texts), page["Participation"](every=1))["participation"]
    expected = np.zeros((data.sizes["layer"], data.sizes["head"]))
    for text in texts:
        layers = by_hand.layers_of(model, text)
        for place, layer in enumerate(data["layer"].values):
            square = np.linalg.svd(layers[layer].mixer["state"], compute_uv=False) ** 2
            expected[place] += (square.sum(-1) ** 2 / (square**2).sum(-1)).sum(0)
    result = data.sum(["label", "fold", "position_bin"])
    np.testing.assert_allclose(result["ratio_sum"].values, expected, rtol=1e-3)
    assert result["tokens"].values.tolist() == [sum(map(len, texts))] * data.sizes["layer"]


@pytest.mark.parametrize("feed", FEEDS)
def test_the_probe_of_outputs_leaves_padding_out(page, model, texts, feed):
    whole = recorded(model, one_by_one(texts), page["OutputNorm"]())
    assert_same(recorded(model, FEEDS[feed](texts), page["OutputNorm"]()), whole)


@pytest.mark.parametrize("name", ["Participation", "OutputNorm"])
def test_they_read_training_steps(page, texts, name):
    model = ql.testing.tiny_model("qwen3_5_moe").train()
    bare = recorded(model, one_by_one(texts), page[name]())
    with ql.watch(model, page[name]()) as seen:
        for text in texts:
            model(text[None], labels=text[None], use_cache=False).loss.backward()
    assert_same(seen.recording(), bare)
    assert all(parameter.grad is not None for parameter in model.model.layers[0].mlp.parameters())


@pytest.mark.parametrize("name", ["Participation", "OutputNorm"])
def test_a_layer_that_does_not_run_raises(page, texts, name):
    model = ql.testing.tiny_model("qwen3_5_moe")
    model.model.layers[1].forward = lambda hidden, **kwargs: hidden
    with pytest.raises(SiteNotReached, match=r"layers\.1\.mixer"), ql.watch(model, page[name]()):
        model(texts[0][None])


def test_the_intervention_removes_the_direction(page, model, texts):
    seen = []
    intervention = page["Project"]("layers.*.mlp", seed=1)
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    handles = [layer.mlp.register_forward_hook(lambda *call: seen.append(call[2])) for layer in model.model.layers]
    ids, mask = batch(texts, "left")
    with torch.no_grad(), ql.intervene(model, intervention) as session:
        model(ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    for output in seen:
        output = output[0] if isinstance(output, tuple) else output
        along = output.reshape(*mask.shape, -1) @ (direction / direction.norm())
        assert along[mask.bool()].abs().max() < 1e-6 < along.abs().max()  # padding is left as it is
    assert [count.acted for count in session.hits[str(intervention)]] == [1] * len(model.model.layers)
    assert str(intervention) == "Project('layers.*.mlp', seed=1)"
