"""Activation patching against values patched in with hooks of torch."""

import numpy as np
import pytest
import torch

from qwenlab.ablations.patching import patching
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, UnknownSite
from qwenlab.interventions.activations import cache_activations
from qwenlab.interventions.session import intervene
from qwenlab.interventions.values import Patch


def pairs(count=3, length=7, differ=(2,), seed=0):
    """Source and target token ids that differ at these positions alone, and an answer each."""
    drawn = torch.randint(1, 250, (count, length), generator=torch.Generator().manual_seed(seed))
    other = drawn.clone()
    for position in differ:
        other[:, position] = (drawn[:, position] + 7) % 250 + 1
    return drawn.tolist(), other.tolist(), [11, 12, 13][:count]


def by_hand(checkpoint, source, target, answers, module, position, heads=None):
    """Log-probabilities, float64, one pair at a time: the value that a module returns (or, with heads, is given)."""
    found = []
    for one, two, answer in zip(source, target, answers, strict=True):
        kept = []

        def keep(module, args, result, kept=kept):
            kept.append((args[0] if heads is not None else result[0] if isinstance(result, tuple) else result).clone())

        def put(module, args, result, kept=kept):
            new = (result[0] if isinstance(result, tuple) else result).clone()
            new[:, position] = kept[0][:, position]
            return (new, *result[1:]) if isinstance(result, tuple) else new

        def give(module, args, kept=kept):
            new = args[0].clone().unflatten(-1, (4, -1))
            new[:, position, heads] = kept[0].unflatten(-1, (4, -1))[:, position, heads]
            return (new.flatten(2),)

        hook = module.register_forward_hook(keep)
        checkpoint.model(torch.tensor([one]))
        hook.remove()
        hook = module.register_forward_hook(put) if heads is None else module.register_forward_pre_hook(give)
        logits = checkpoint.model(torch.tensor([two])).logits[0, -1].double().numpy()
        hook.remove()
        logits -= logits.max()
        found.append(logits[answer] - np.log(np.exp(logits).sum()))
    return found


@pytest.mark.slow
@torch.no_grad()
def test_it_is_the_slow_loop(checkpoint):
    source, target, answers = pairs(count=2)
    decoder = decoder_of(checkpoint.model)
    for word, module in (
        ("residual", lambda layer: decoder.layers[layer]),
        ("mixer", decoder.mixer),
        ("mlp", lambda layer: decoder.part(layer, "mlp")),
    ):
        found = patching(
            checkpoint, source, target, answers, sites=f"layers.*.{word}", positions=[2, 6], progress=False
        )
        assert found["logprob"].dims == ("site", "position", "pair")
        for layer, position in np.ndindex(4, 2):
            at = found["position"].values[position]
            expected = by_hand(checkpoint, source, target, answers, module(layer), at)
            np.testing.assert_allclose(found["logprob"][layer, position], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "projection"), [(1, "out_proj"), (3, "o_proj")])
def test_heads(checkpoint, layer, projection):
    if checkpoint.model.config.model_type.startswith("qwen3_5_text") and layer == 1:
        pytest.skip("its DeltaNet layers have eight heads")
    source, target, answers = pairs()
    found = patching(
        checkpoint, source, target, answers, sites=f"layers.{layer}.mixer.heads", heads=[0, 3], progress=False
    )
    assert found.attrs["heads"] == "0, 3"
    module = getattr(decoder_of(checkpoint.model).mixer(layer), projection)
    for at in (2, 6):
        expected = by_hand(checkpoint, source, target, answers, module, at, heads=[0, 3])
        np.testing.assert_allclose(found["logprob"].sel(position=at)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_whole_source_gives_the_sources_answer(moe):
    source, target, answers = pairs(differ=(1, 3))
    found = patching(moe, source, target, answers, progress=False)
    last = found["logprob"].isel(site=-1, position=-1)
    np.testing.assert_allclose(last, found["source_logprob"], rtol=1e-6)
    assert abs(found["source_logprob"] - found["target_logprob"]).min() > 1e-4
    before = found["logprob"].sel(position=0)  # nothing differs there
    np.testing.assert_allclose(before, np.broadcast_to(found["target_logprob"], before.shape), rtol=1e-6)
    for layer in range(4):  # every position at once
        with cache_activations(moe, "layers.*.residual") as taken, torch.no_grad():
            moe.model(torch.tensor(source))
        with intervene(moe, Patch(f"layers.{layer}.residual", cache=taken)), torch.no_grad():
            logits = moe.model(torch.tensor(target)).logits[:, -1].double().log_softmax(-1)
        np.testing.assert_allclose(logits[range(3), answers], found["source_logprob"], rtol=1e-5)


def test_what_is_said_of_it(moe):
    texts = ["a1b2c3", "xyzxyz"]
    same = ["a1b4c3", "xyzyyz"]
    found = patching(moe, texts, same, [5, 6], positions=[3, 1], progress=False)
    assert found["site"].values.tolist() == [f"layers.{layer}.residual" for layer in range(4)]
    assert found["layer"].values.tolist() == [0, 1, 2, 3]
    assert found["kind"].values.tolist() == ["linear_attention"] * 3 + ["full_attention"]
    assert found["position"].values.tolist() == [1, 3]
    ids = [moe.tokenizer(text)["input_ids"] for text in texts]
    expected = [[moe.tokenizer.decode([row[position]]) for position in (1, 3)] for row in ids]
    assert found["source_token"].values.tolist() == expected
    assert {found[name].attrs["units"] for name in found} == {"nat"}
    assert found.attrs["checkpoint_hash"] == moe.facts.hash
    assert found.attrs["tokens"] == 2 * sum(map(len, ids))


def test_pairs_are_read_as_if_each_were_alone(moe):
    source, target, answers = pairs()
    together = patching(moe, source, target, answers, sites="layers.1.residual", progress=False)
    for pair in range(3):
        one = slice(pair, pair + 1)
        alone = patching(moe, source[one], target[one], answers[one], sites="layers.1.residual", progress=False)
        np.testing.assert_allclose(alone["logprob"][..., 0], together["logprob"][..., pair], rtol=1e-4, atol=1e-5)


def test_what_it_refuses(moe):
    source, target, answers = pairs()
    refused = [
        ((source, target, answers[:2]), {}, r"3 sources, 3 targets and 2 answers\.\nGive as many of each"),
        ((source, [row[:6] for row in target], answers), {}, r"texts of 6, 7 tokens; positions correspond only"),
        (("text", target, answers), {}, r"patching\(source=\.\.\.\): give a list of texts, at least one"),
        ((source, [], answers), {}, r"patching\(target=\.\.\.\): give a list of texts, at least one"),
        ((source, [*target[:2], source[2]], answers), {}, r"source and target of pair 2 are the same text"),
        (([1, 2], target, answers), {}, r"patching\(source=\.\.\.\): give a list of token ids, .*; got 1\."),
        (
            (source, [[1, 2.5]], answers),
            {},
            r"patching\(target=\.\.\.\): give a list of token ids, all integers; got \[1, 2\.5\]\.",
        ),
        ((source, target, "abc"), {}, r"patching\(answers=\.\.\.\): give a list of token ids, all integers; got 'abc'"),
        ((source, target, 5), {}, r"patching\(answers=\.\.\.\): give a list of token ids, all integers; got 5"),
        ((source, target, [1, 2, 999]), {}, r"the model has tokens 0 to 287; got token 999\."),
        ((source, target, answers), dict(positions=[3, 7]), r"have 7 tokens; got position 7\."),
        ((source, target, answers), dict(positions=3), r"patching\(positions=\.\.\.\): 3 is one number"),
        ((source, target, answers), dict(heads=[1]), r"layers\.0\.residual has no heads"),
        (
            (source, target, answers),
            dict(sites="layers.*.mixer.heads", heads=[0, 4]),
            r"patching\(heads=\[0, 4\]\): layers\.0\.mixer\.heads has heads 0 to 3; got head 4\.",
        ),
    ]
    for given, how, message in refused:
        with pytest.raises(BadArgument, match=message):
            patching(moe, *given, progress=False, **how)
    with pytest.raises(UnknownSite, match=r"No site matches 'layers\.\*\.stream'"):
        patching(moe, source, target, answers, sites="layers.*.stream", progress=False)
