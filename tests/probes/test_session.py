"""Watching changes no result and leaves no hook behind, in whatever order watches end."""

import sys

import pytest
import torch

import qwenlab as ql
from qwenlab.errors import NoForwardPass, UnknownLayer
from qwenlab.probes import Attention, DeltaNet, Memory, Residual, Routing, Timing
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded, thorough
from tests.probes.traces import traces


def everything(model):
    """Every probe that fits, each at its most thorough."""
    routing = (Routing(),) if hasattr(model.config.get_text_config(), "num_experts") else ()
    return (
        DeltaNet(every=1, prediction_heads="all"),
        Attention(every=1),
        *routing,
        Residual(every=1),
        Timing(),
        Memory(),
    )


@pytest.fixture(params=["eager", "sdpa"])
def attending(request, model):
    """Each family with each attention implementation."""
    before = model.config._attn_implementation
    model.set_attn_implementation(request.param)
    yield model
    model.set_attn_implementation(before)


def test_not_one_logit_changes(attending, text):
    ids, mask = torch.stack([text(70), text(70, 1)]), torch.ones(2, 70, dtype=torch.long)
    mask[0, :9] = 0
    bare = attending(ids, attention_mask=mask)
    with watch(attending, *everything(attending)):
        watched = attending(ids, attention_mask=mask)
        after = attending(
            ids[:, :1],
            attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1),
            past_key_values=watched.past_key_values,
        )
    again = attending(
        ids[:, :1], attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1), past_key_values=bare.past_key_values
    )
    assert torch.equal(watched.logits, bare.logits)
    assert torch.equal(after.logits, again.logits)


@pytest.mark.parametrize(
    "how", [dict(do_sample=False), dict(do_sample=True, top_k=50), dict(do_sample=True, use_cache=False)]
)
def test_generate_finds_the_same_tokens(moe, text, how):
    def run():
        torch.manual_seed(5)
        ids = torch.stack([text(9), text(9, 1)])
        mask = torch.ones_like(ids)
        return moe.generate(
            ids, attention_mask=mask, max_new_tokens=8, return_dict_in_generate=True, output_scores=True, **how
        )

    bare = run()
    with watch(moe, *everything(moe)):
        watched = run()
    assert torch.equal(watched.sequences, bare.sequences)
    assert all(torch.equal(one, other) for one, other in zip(watched.scores, bare.scores, strict=True))


def test_the_random_state_is_left_alone(moe, text):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with watch(moe, *everything(moe)) as seen:
        moe(text(20)[None])
    seen.recording()
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_left_behind(attending, text):
    before = traces(attending)
    with watch(attending, *everything(attending)) as seen:
        assert traces(attending) != before
        attending(text(5)[None])
    assert traces(attending) == before
    seen.recording()
    assert traces(attending) == before


def test_nothing_is_left_behind_when_the_block_raises(attending, text):
    def run():
        with watch(attending, *everything(attending)):
            attending(text(5)[None])
            raise ZeroDivisionError

    before = traces(attending)
    with pytest.raises(ZeroDivisionError):
        run()
    assert traces(attending) == before


def test_nothing_is_left_behind_when_the_model_raises(attending):
    before = traces(attending)
    with pytest.raises(IndexError), watch(attending, *everything(attending)):
        attending(torch.tensor([[5, 99999]]))
    assert traces(attending) == before


def test_nothing_is_left_behind_when_a_probe_cannot_start(moe):
    before, probe = traces(moe), DeltaNet()
    with pytest.raises(UnknownLayer), watch(moe, probe, Residual(layers=[77])):
        pass
    assert traces(moe) == before
    with pytest.raises(NoForwardPass), watch(moe, probe):  # and the probe is free again
        pass


@pytest.mark.parametrize("first_out", [0, 1])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_watches_of_two_models_end_in_any_order(text, first_out, implementation):
    models = [
        tiny_model("qwen3_5_moe", seed=seed, layer_types=["linear_attention", "full_attention"]) for seed in (0, 1)
    ]
    for model in models:
        model.set_attn_implementation(implementation)
    before = [traces(model) for model in models]
    alone = [recorded(model, one_by_one([text(9)])) for model in models]
    seen = [watch(model, *thorough(model)) for model in models]
    with torch.no_grad():
        for watching, model in zip(seen, models, strict=True):
            watching.__enter__()
            model(text(5)[None, :5])
        seen[first_out].__exit__(None, None, None)
        models[first_out](text(20)[None])
        models[1 - first_out](text(9)[None])
        seen[1 - first_out].__exit__(None, None, None)
    assert [traces(model) for model in models] == before
    # The one that stayed has seen its 9 tokens and the 5, and nothing of the other's.
    stayed = seen[1 - first_out].recording()
    assert stayed.attrs["tokens"] == 14
    five = recorded(models[1 - first_out], one_by_one([text(5)]))
    assert_same(stayed, five.merge(alone[1 - first_out]))


@pytest.mark.parametrize("outer_first", [True, False])
def test_two_watches_of_one_model_see_each_what_is_read_in_its_block(moe, text, outer_first):
    before = traces(moe)
    outer, inner = (watch(moe, *thorough(moe)) for _ in range(2))
    with torch.no_grad():
        outer.__enter__()
        moe(text(5)[None])
        inner.__enter__()
        moe(text(9)[None])
        (outer if outer_first else inner).__exit__(None, None, None)
        moe(text(7)[None])
        (inner if outer_first else outer).__exit__(None, None, None)
    assert traces(moe) == before
    read = {True: ([5, 9], [9, 7]), False: ([5, 9, 7], [9])}[outer_first]
    for seen, lengths in zip((outer, inner), read, strict=True):
        assert_same(seen.recording(), recorded(moe, one_by_one([text(n) for n in lengths])))


def test_a_function_laid_over_ours_meanwhile_stays(small, text):
    modeling = sys.modules[type(small).__module__]
    original, calls = modeling.torch_chunk_gated_delta_rule, []
    with watch(small, DeltaNet()):
        ours = modeling.torch_chunk_gated_delta_rule

        def theirs(*args, **kwargs):
            calls.append(1)
            return ours(*args, **kwargs)

        modeling.torch_chunk_gated_delta_rule = theirs
        small(text(5)[None])
    try:
        assert modeling.torch_chunk_gated_delta_rule is theirs
        small(text(5)[None])
        assert len(calls) == 2
    finally:
        modeling.torch_chunk_gated_delta_rule = original


def test_other_models_keep_their_own_eager_attention(text):
    """Each modeling file has its own eager attention, and some of them differ."""
    ours, other = tiny_model("qwen3_5"), tiny_model("qwen3_next")
    for model in (ours, other):
        model.set_attn_implementation("eager")
    modeling, calls = sys.modules[type(other).__module__], []
    original = modeling.eager_attention_forward
    modeling.eager_attention_forward = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    try:
        with watch(ours, Attention()):
            other(text(5)[None])
            ours(text(5)[None])
    finally:
        modeling.eager_attention_forward = original
    assert len(calls) == 1


def test_the_public_names(small, text):
    with ql.watch(small, *ql.probes.defaults(small)) as seen:
        small(text(5)[None])
    assert list(seen.recording()) == ["deltanet", "attention", "routing", "residual", "timing", "memory"]
    assert ql.probes.watch is ql.watch


def test_layers_are_taken_in_order_whatever_the_probes_and_their_order(moe, text):
    """Experts are handed over from layer to layer: also where another probe asked for a later layer first."""
    feed = in_pieces([text(9)], (3, 1))
    expected = recorded(moe, feed, Routing(every=1))["routing"]
    result = recorded(moe, feed, Residual(layers=[2]), DeltaNet(layers=[1]), Routing(every=1))["routing"]
    assert (result["transition"] == expected["transition"]).all()
    assert int(result["transition"].sum()) == 3 * 9
    few = recorded(moe, feed, Residual(layers=[2]), Routing(layers=[0, 2, 3]))["routing"]
    assert (few["transition"].sel(layer=2) == expected["transition"].sel(layer=2)).all()
