"""After a rollback every state equals that of a text read without the rejected tokens."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import DynamicCache, StaticCache

from qwenlab.checkpoint.caches import cache_argument
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import CannotRollBack
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.rollback import ReplayRollback, RerunRollback, Rollback
from qwenlab.testing.models import tiny_model

TOLERANCE = (
    1e-4  # relative, float32: another width rounds otherwise (up to 2e-5 seen); a rejected token in it makes 0.15
)

FAMILIES = {
    "dense": dict(family="qwen3_5", linear_num_key_heads=4, linear_num_value_heads=8),
    "moe": dict(family="qwen3_5_moe", linear_value_head_dim=8),
    "next": dict(family="qwen3_next"),
    "olmo": dict(family="olmo_hybrid", linear_value_head_dim=24),
    "uneven": dict(family="qwen3_5", layer_types=["full_attention", "linear_attention", "linear_attention"]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(**FAMILIES[request.param])


def everything(context: TargetContext) -> list[torch.Tensor]:
    keys = [tensor for layer in context.attention for tensor in (layer.keys, layer.values)]
    return [*context.recurrent, *context.convolution, *keys]


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randint(1, 280, (count,), generator=torch.Generator().manual_seed(seed))


def run(
    model, prompt: torch.Tensor, rounds: list[tuple[int, int]], rollback: Rollback | None, seed: int = 1
) -> TargetContext:
    """Read the prompt, then keep the first `kept` tokens of each block of `width`: rolled back, or others unread."""
    context = TargetContext(model)
    context.read(prompt)
    for number, (width, kept) in enumerate(rounds):
        block = drawn(width, seed + number)
        if rollback is None:
            context.read(block[:kept])
        else:
            with rollback.verifying(context):
                context.read(block)
            rollback.keep(context, kept)
    return context


ROUNDS = st.lists(
    st.integers(2, 9).flatmap(lambda width: st.tuples(st.just(width), st.integers(1, width))), min_size=1, max_size=4
)


@pytest.mark.parametrize("kind", [ReplayRollback, RerunRollback])
@given(rounds=ROUNDS, prompt=st.integers(1, 70), seed=st.integers(0, 9))
@settings(max_examples=15)
@torch.no_grad()
def test_any_pattern_leaves_the_states_of_plain_decoding(model, kind, rounds, prompt, seed):
    """Widths 2 to 9 (depths 1 to 8), every number kept, from prompts shorter than the convolution on."""
    found = run(model, drawn(prompt, 100 + seed), rounds, kind(), seed)
    wanted = run(model, drawn(prompt, 100 + seed), rounds, None, seed)
    assert found.position == wanted.position == prompt + sum(kept for _, kept in rounds)
    for ours, theirs in zip(everything(found), everything(wanted), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()


@pytest.mark.parametrize("kind", [ReplayRollback, RerunRollback])
@torch.no_grad()
def test_every_prefix_of_a_long_block(model, kind):
    """Also when four and more drafts are accepted, token by token against a decode of width 1."""
    block = drawn(9, 1)
    for kept in range(1, 10):
        found = run(model, drawn(20, 5), [(9, kept)], kind(), 1)
        plain = TargetContext(model)
        plain.read(drawn(20, 5))
        for token in block[:kept]:
            plain.read(token[None])
        for ours, theirs in zip(everything(found), everything(plain), strict=True):
            assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()


@torch.no_grad()
def test_rollback_is_bit_exact_if_the_same_widths_ran(model):
    """Rerun reads only the accepted tokens; both leave a fully accepted block unchanged."""
    for kind, rounds in ((RerunRollback, [(6, 2), (4, 4), (5, 1)]), (ReplayRollback, [(6, 6), (4, 4)])):
        found, wanted = run(model, drawn(17, 3), rounds, kind()), run(model, drawn(17, 3), rounds, None)
        assert all(torch.equal(a, b) for a, b in zip(everything(found), everything(wanted), strict=True))


@torch.no_grad()
def test_replay_reads_no_weight(model):
    """No module of the model runs in `keep`, not even its embedding."""
    context, rollback = TargetContext(model), ReplayRollback()
    context.read(drawn(9, 0))
    with rollback.verifying(context):
        context.read(drawn(5, 1))
    ran = []
    hooks = [module.register_forward_hook(lambda module, *_: ran.append(module)) for module in model.modules()]
    rollback.keep(context, 2)
    for hook in hooks:
        hook.remove()
    assert not ran


@torch.no_grad()
def test_nothing_stays_wrapped(model):
    """After `verifying` the functions of model and cache are the original ones."""
    context, rollback = TargetContext(model), ReplayRollback()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    context.read(drawn(3, 0))
    with pytest.raises(IndexError), rollback.verifying(context):
        context.read(torch.tensor([10_000]))  # no row of the embedding
    assert {name: set(vars(module)) for name, module in model.named_modules()} == {k: set(v) for k, v in before.items()}
    assert all("update_conv_state" not in vars(layer) for layer in context.deltanet)


def test_caches_without_exact_rollback_are_refused(model):
    config = model.config
    with pytest.raises(
        CannotRollBack, match=r"StaticCache .* cannot be rolled back exactly(.|\n)*DynamicCache\(config"
    ):
        TargetContext(model, StaticCache(config=config, max_cache_len=64))
    with pytest.raises(CannotRollBack, match=r"0 layers for"):
        TargetContext(model, DynamicCache())
    used = DynamicCache(config=config)
    model(drawn(4, 0)[None], past_key_values=used)
    with pytest.raises(CannotRollBack, match=r"holds 4 tokens already(.|\n)*whole text as the prompt"):
        TargetContext(model, used)


def test_checkpoints_keep_their_cache_class(checkpoint: Checkpoint):
    """The cache that transformers makes for a toy can be rolled back."""
    assert TargetContext(checkpoint.model).deltanet


def test_crop_of_transformers_is_as_documented():
    """It raises if the past was not recorded; if it was, the recurrent state keeps the cropped tokens."""
    model = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"])
    for records in (False, True):
        cache = DynamicCache(config=model.config)
        if records:
            cache.activate_past_recording()
        with torch.no_grad():
            model(drawn(12, 0)[None], use_cache=True, **{cache_argument(type(model).forward): cache})
        before = cache.layers[0].recurrent_states[0].clone()
        if records:
            cache.crop(-4)
            assert cache.get_seq_length() == 8
            assert torch.equal(cache.layers[0].recurrent_states[0], before)
        else:
            with pytest.raises(RuntimeError, match="activate_past_recording"):
                cache.crop(-4)
