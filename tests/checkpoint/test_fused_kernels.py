"""Models run on the CPU even if fused GPU kernels are installed; fake kernels that reject CPU tensors replace them."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from threading import Barrier

import pytest
import torch
from torch import nn

import qwenlab as ql
from qwenlab.checkpoint.families import FAMILIES
from qwenlab.checkpoint.fused_kernels import implementation, run_on_cpu, running_on_cpu
from qwenlab.checkpoint.mixers.gated_deltanet import CONVOLUTIONS
from qwenlab.errors import BadArgument
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.models import tiny_model
from tests.checkpoint import with_kernels

FAMILY = FAMILIES["qwen3_5"]
LAYERS = ["linear_attention", "full_attention"]
REFUSED = pytest.raises(RuntimeError, match="cannot be accessed from Triton")


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def modeling(monkeypatch):
    return with_kernels.bind(FAMILY, monkeypatch)


def rule_arguments(device="cpu"):
    given = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 70, 2, 8, generator=given).to(device) for _ in range(3))
    g, beta = (torch.rand(1, 70, 2, generator=given).to(device) for _ in range(2))
    return (query, key, value), dict(g=-g, beta=beta, output_final_state=True, use_qk_l2norm_in_kernel=True)


def equal(ours, expected):
    return all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", [FAMILY.deltanet.chunk_rule, FAMILY.deltanet.recurrent_rule])
def test_rules_go_by_the_device(modeling, name):
    rule = getattr(modeling, name)
    args, kwargs = rule_arguments()
    with REFUSED:
        rule(*args, **kwargs)
    run_on_cpu(FAMILY)
    assert equal(rule(*args, **kwargs), rule.__wrapped__(*args, **kwargs))
    args, kwargs = rule_arguments("meta")
    assert rule(*args, **kwargs) == (args[0], "fused")


def test_convolutions_go_by_the_device(modeling):
    stream, weight, state = torch.randn(1, 6, 9), torch.randn(6, 4), torch.randn(1, 6, 4)
    run_on_cpu(FAMILY)
    convolve, update = modeling.causal_conv1d_fn, modeling.causal_conv1d_update
    assert equal([convolve(stream, weight, None, activation="silu", seq_idx=None)], [
        convolve.__wrapped__(stream, weight, None, activation="silu")
    ])  # fmt: skip
    one, other = state.clone(), state.clone()
    out = update(stream[..., :1], one, weight, None, "silu")
    assert equal([out, one], [update.__wrapped__(stream[..., :1], other, weight, None, "silu"), other])
    far = stream.to("meta")
    assert convolve(far, weight, None, activation="silu") is far


def test_packed_rows_are_rejected_on_the_cpu(modeling):
    """Torch's own functions would ignore where sequences begin."""
    run_on_cpu(FAMILY)
    (args, kwargs), places = rule_arguments(), torch.tensor([0, 30, 70])
    message = ": no kernel on the CPU can separate the sequences of a packed row.\nRun the model on a GPU"
    with pytest.raises(BadArgument, match=f"^cu_seqlens{message}"):
        modeling.torch_chunk_gated_delta_rule(*args, **kwargs, cu_seqlens=places)
    with pytest.raises(BadArgument, match=f"^seq_idx{message}"):
        modeling.causal_conv1d_fn(torch.randn(1, 6, 9), torch.randn(6, 4), None, seq_idx=places)


def test_a_block_leaves_the_kernels_as_they_were(modeling):
    rule, (args, kwargs) = modeling.torch_chunk_gated_delta_rule, rule_arguments()
    before = inspect.getclosurevars(rule).nonlocals
    for ending in (None, ZeroDivisionError):
        try:
            with running_on_cpu(FAMILY):
                rule(*args, **kwargs)
                if ending is not None:
                    raise ending
        except ZeroDivisionError:
            pass
        with REFUSED:
            rule(*args, **kwargs)
        assert inspect.getclosurevars(rule).nonlocals == before
        assert modeling.torch_chunk_gated_delta_rule is rule


def test_blocks_overlap(modeling):
    rule, (args, kwargs) = modeling.torch_chunk_gated_delta_rule, rule_arguments()
    first, second = ExitStack(), ExitStack()
    first.enter_context(running_on_cpu(FAMILY))
    second.enter_context(running_on_cpu(FAMILY))
    first.close()
    rule(*args, **kwargs)
    second.close()
    with REFUSED:
        rule(*args, **kwargs)
    run_on_cpu(FAMILY)
    run_on_cpu(FAMILY)
    with running_on_cpu(FAMILY):
        pass
    rule(*args, **kwargs)


def test_threads_come_and_go(modeling):
    rule, (args, kwargs) = modeling.torch_recurrent_gated_delta_rule, rule_arguments()
    args, kwargs = [each[:, :1] for each in args], kwargs | {name: kwargs[name][:, :1] for name in ("g", "beta")}
    together = Barrier(4)

    def come_and_go():
        together.wait()
        for _ in range(100):
            with running_on_cpu(FAMILY):
                rule(*args, **kwargs)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(come_and_go) for _ in range(4)]:
            done.result()
    with REFUSED:
        rule(*args, **kwargs)


@pytest.mark.parametrize("value", ["1", "true"])
def test_interpreted_rules_run_where_they_are(modeling, monkeypatch, value):
    """Triton's interpreter runs on a CPU; the kernels of causal_conv1d do not use Triton."""
    monkeypatch.setenv("TRITON_INTERPRET", value)
    rule, (args, kwargs) = modeling.torch_chunk_gated_delta_rule, rule_arguments()
    assert implementation(rule, "cpu") is with_kernels.chunk_gated_delta_rule
    run_on_cpu(FAMILY)
    with REFUSED:
        rule(*args, **kwargs)
    modeling.causal_conv1d_fn(torch.randn(1, 6, 9), torch.randn(6, 4), None)


def test_without_fused_kernels_nothing_is_done():
    other = FAMILIES["qwen3_next"]
    rule = vars(import_module(other.modeling))[other.deltanet.chunk_rule]
    if inspect.getclosurevars(rule).nonlocals["implementation"] is not rule.__wrapped__:
        pytest.skip("flash-linear-attention is installed here")
    run_on_cpu(other)
    assert inspect.getclosurevars(rule).nonlocals["implementation"] is rule.__wrapped__


def test_implementation_depends_on_the_device(modeling):
    rule = modeling.torch_chunk_gated_delta_rule
    for _ in range(2):
        assert implementation(rule, "cpu") is rule.__wrapped__
        assert implementation(rule, "cuda") is with_kernels.chunk_gated_delta_rule
        run_on_cpu(FAMILY)  # and then again


def test_wrappers_of_others_are_passed(modeling, monkeypatch):
    rule, (args, kwargs) = modeling.torch_chunk_gated_delta_rule, rule_arguments()

    @wraps(rule)
    def theirs(*args, **kwargs):
        return rule(*args, **kwargs)

    monkeypatch.setattr(modeling, FAMILY.deltanet.chunk_rule, theirs)
    run_on_cpu(FAMILY)
    theirs(*args, **kwargs)
    assert implementation(theirs, "cuda") is with_kernels.chunk_gated_delta_rule


def test_a_function_of_the_users_own_stays(modeling, monkeypatch):
    def theirs(*args, **kwargs):
        return "theirs"

    monkeypatch.setattr(modeling, FAMILY.deltanet.chunk_rule, theirs)
    run_on_cpu(FAMILY)
    assert modeling.torch_chunk_gated_delta_rule is theirs
    assert implementation(theirs, "cpu") is implementation(theirs, "cuda") is theirs


def test_functions_that_the_kernels_package_made_modules_of(modeling, monkeypatch):
    """As its `use_kernel_forward_from_hub` makes them, which transformers applies where it is installed."""

    def module_of(func):
        class Func(nn.Module):
            def forward(self, *args, **kwargs):
                return func(*args, **kwargs)

        return Func()

    rule, (args, kwargs) = modeling.torch_chunk_gated_delta_rule, rule_arguments()
    module = module_of(rule)
    monkeypatch.setattr(modeling, FAMILY.deltanet.chunk_rule, module)
    run_on_cpu(FAMILY)
    assert equal(module(*args, **kwargs), rule.__wrapped__(*args, **kwargs))
    assert implementation(module, "cuda") is with_kernels.chunk_gated_delta_rule

    def hub(*args, **kwargs):
        return "hub"

    module.forward = hub
    assert implementation(module, "cpu") is hub


def test_an_opened_model_runs_and_trains(modeling, tmp_path, monkeypatch):
    """With torch's own logits and gradients."""
    model = ql.open(tiny_checkpoint(tmp_path, "qwen3_5", layer_types=LAYERS)).model
    tokens = torch.arange(1, 71)[None]
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    other = tiny_model("qwen3_5", layer_types=LAYERS)
    for name in (FAMILY.deltanet.chunk_rule, *CONVOLUTIONS):
        monkeypatch.setattr(modeling, name, getattr(modeling, name).__wrapped__)
    expected = other(tokens, labels=tokens).loss
    expected.backward()
    assert torch.equal(loss, expected)
    ours, theirs = (dict(each.named_parameters()) for each in (model, other))
    for name, parameter in theirs.items():
        assert torch.equal(ours[name].grad, parameter.grad), name
