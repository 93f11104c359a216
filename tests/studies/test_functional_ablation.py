"""What the experiment on functional ablation leaves out, holds it against, and says that layers add."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import qwenlab as ql
from qwenlab.ablations import units
from qwenlab.testing.checkpoints import tiny_checkpoint

FOLDER = Path(__file__).parents[2] / "experiments" / "functional-ablation"
KINDS = [*["linear_attention"] * 3, "full_attention"] * 2


@pytest.fixture(scope="module")
def protocol():
    spec = importlib.util.spec_from_file_location("functional_ablation_protocol", FOLDER / "protocol.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ql.open(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3_5", layer_types=KINDS))


def test_groups_parts_and_places_with_their_controls(protocol, tiny):
    made = protocol.ablations(tiny, trials=2, seed=0)
    parts = {each.name: set(each.parts) for each in made if not each.control_of}
    assert parts["all attention layers"] == {"layers.3", "layers.7"}
    assert parts["all DeltaNet mixers"] == {f"layers.{layer}.mixer" for layer in (0, 1, 2, 4, 5, 6)}
    assert parts["middle third of the DeltaNet layers"] == {"layers.2", "layers.4"}
    assert parts["last 4 DeltaNet layers"] == {f"layers.{layer}" for layer in (2, 4, 5, 6)}
    assert {f"{of} {layer}" for of in ("layer", "mixer", "mlp") for layer in range(8)} <= set(parts)
    assert len({frozenset(each) for each in parts.values()}) == len(parts), "nothing is left out twice"
    counts = pd.Series([each.control_of for each in made if each.control_of]).value_counts()
    assert set(counts) == {2}
    assert set(parts) - set(counts.index) <= {"all DeltaNet mixers", "all attention mixers"}
    for seed, same in ((0, True), (1, False)):
        assert (made == protocol.ablations(tiny, trials=2, seed=seed)) is same


def test_sets_drawn_again_are_as_large_and_never_the_group_itself(protocol, tiny):
    layers = units(tiny, "layer")
    group = ql.ablations.combined(layers[:6], "six")
    drawn = list(protocol.drawn_again(group, layers, 99, seed=0))
    assert len(drawn) == 27  # of 28 sets of six among eight
    assert {len(each.parts) for each in drawn} == {6}
    sets = {frozenset(each.parts) for each in drawn}
    assert len(sets) == 27
    assert frozenset(group.parts) not in sets
    assert {each.control_of for each in drawn} == {"six"}


def test_a_kind_that_nothing_else_matches_goes_without_controls(protocol, tiny):
    mixers = units(tiny, "mixer")
    (all_deltanet, _) = units(tiny, "kind")
    assert protocol.matched(all_deltanet, mixers, 3, 0) == []


def test_contributions_are_those_of_a_slow_reference(protocol, tiny):
    texts = [[5, 9, 2, 7, 7, 1], list(range(3, 80))]
    found = protocol.contributions(tiny, texts)
    for text, tokens in enumerate(texts):
        streams, mixed = _streams(tiny.model, tokens)
        for layer in range(8):
            x, y = streams[layer], streams[layer + 1]
            size = np.linalg.norm(x, axis=1)
            p, q = (_read_off(tiny.model, each) for each in (y, x))
            expected = {
                "norm_change": np.linalg.norm(y - x, axis=1).mean() / size.mean(),
                "cosine": ((x * y).sum(1) / size / np.linalg.norm(y, axis=1)).mean(),
                "mixer_ratio": np.linalg.norm(mixed[layer], axis=1).mean() / size.mean(),
                "lens_kl": (np.exp(p) * (p - q)).sum(1).mean(),
            }
            for name, value in expected.items():
                assert float(found[name][layer, text]) == pytest.approx(value, rel=1e-4, abs=1e-7), (name, layer)


def _streams(model, tokens):
    """The stream before the first layer and after each, and the mixers' outputs, [position, channel] in float64."""
    streams, mixed = [model.get_input_embeddings()(torch.tensor(tokens)).detach().double().numpy()], []
    hooks = []
    for layer in model.model.layers:
        mixer = layer.linear_attn if hasattr(layer, "linear_attn") else layer.self_attn
        hooks.append(mixer.register_forward_hook(lambda _, __, out: mixed.append(_first(out))))
        hooks.append(layer.register_forward_hook(lambda _, __, out: streams.append(_first(out))))
    with torch.no_grad():
        model(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return streams, mixed


def _first(out):
    return (out[0] if isinstance(out, tuple) else out)[0].detach().double().numpy()


def _read_off(model, stream):
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(torch.tensor(stream, dtype=torch.float32)))
    return logits.double().log_softmax(-1).numpy()


def test_the_published_figures_say_where_they_are_from():
    text = (FOLDER / "paper.csv").read_text()
    assert "arXiv:2603.22473" in text.splitlines()[0]
    published = pd.read_csv(FOLDER / "paper.csv", comment="#")
    assert published["value"].notna().all()
    assert not published.duplicated(["table", "condition", "layer", "quantity", "benchmark"]).any()
    # the ratios of perplexities that the paper's summary names: over 35,000 times, and about 82 times
    loss = published[published["table"] == "perplexity_under_ablation.csv"].set_index("condition")["value"]
    assert np.exp(loss["all_linear_off"] - loss["baseline"]) == pytest.approx(35_198, rel=1e-3)
    assert np.exp(loss["all_attention_off"] - loss["baseline"]) == pytest.approx(82, rel=1e-2)
