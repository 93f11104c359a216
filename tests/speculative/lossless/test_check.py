"""`check_lossless` finds no fault in a correct run, and names every planted fault."""

import re
from contextlib import contextmanager

import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument, NoMtpHead, NonFiniteWeights
from qwenlab.speculative import Greedy, ReplayRollback, RerunRollback, check_lossless
from qwenlab.speculative.lossless.check import _report
from qwenlab.speculative.lossless.reference import COMPONENTS
from qwenlab.speculative.verification import Verification
from tests.speculative import faulty


@pytest.mark.parametrize(
    ("name", "depth"), [pytest.param("toy-moe", 3, marks=pytest.mark.slow), ("toy-dense", 1), ("toy-dense", 8)]
)
def test_a_clean_run_is_lossless(name, prompts, depth):
    checkpoint = ql.open(name)
    found = check_lossless(checkpoint, prompts(checkpoint), depth=depth, max_new_tokens=24, progress=False)
    assert found.verdict == "lossless"
    assert found
    assert found.fault is None
    assert found.tokens == 48
    worst = {name: float(found.rounds[name].max()) for name in found.rounds if name.endswith("_error")}
    assert worst["position_error"] == 0
    assert all(error < 1e-5 for error in worst.values())
    assert "lossless: 48 tokens" in repr(found)


@pytest.mark.slow
def test_snapshot_and_rerun_is_lossless_too(dense, prompts):
    assert check_lossless(dense, prompts(dense), depth=4, max_new_tokens=30, rollback=RerunRollback, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "component", "says"),
    [
        (faulty.RecurrentKept, "recurrent", r"recurrent is off by .* from layer 0 on"),
        (faulty.ConvolutionKept, "convolution", r"convolution is off by .* from layer 0 on"),
        (faulty.EmptyKeys, "recurrent", r"from layer 4 on.*keys and values"),  # layer 3 is the first attention layer
        (faulty.Clamped, "position", r"position -[1-9], keys and values -[1-9]"),
        (faulty.TooMany, "position", r"position \+1, keys and values \+1"),
        (faulty.PositionKept, "position", r"tokens in the cache minus tokens read: position \+[1-9]$"),
    ],
)
def test_planted_faults_are_named(dense, prompts, fault, component, says):
    texts = prompts(dense, 2, 48)
    found = check_lossless(dense, texts, depth=5, max_new_tokens=24, rollback=fault, progress=False)
    assert found.verdict == "NOT lossless"
    assert not found
    assert found.fault.component == component
    shown = repr(found).splitlines()[1]
    assert shown.startswith("  first fault: text ")
    assert re.search(says, shown), shown


@pytest.mark.slow
def test_a_lenient_rule_is_named(dense, prompts):
    """It accepts a draft that is the target model's second choice."""

    class Lenient(Greedy):
        name = "lenient"

        def verify(self, drafts, proposal, scores, generator):
            likely = scores.topk(2).indices
            accepted = int((likely[:-1] == drafts[:, None]).any(-1).long().cumprod(0).sum())
            return Verification(accepted, int(likely[accepted, 0]))

    found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=40, rule=Lenient(), progress=False)
    assert found.fault.component == "verdict rule"
    assert "less likely than the target model's best by" in repr(found)
    assert found.differing_tokens > 0


def test_a_tie_is_numerics():
    """A token that differs by less than the noise floor, in correct states, is not a fault; a larger difference is."""
    clean = {"text": 0, "round": 0, "accepted": 1, "layers": {name: {0: 1e-7} for name in COMPONENTS}, "excess": {}}
    clean["layers"]["position"] = {0: 0.0}
    allowed = dict.fromkeys(COMPONENTS, 1e-5) | {"position": 0.0}
    attrs = {"rule": "greedy", "depth": 1, "rollback": "replay"}
    for regret, verdict in ((0.0, "lossless"), (1e-6, "lossless up to numerics"), (1e-4, "NOT lossless")):
        found = _report([{**clean, "regrets": [0.0, regret]}], allowed, allowed, [[1e-5, 1e-5]], attrs)
        assert found.verdict == verdict
        assert found.differing_tokens == (regret > 0)
        assert found.tokens == 2


@pytest.fixture(scope="module")
def bfloat16():
    return ql.open("toy-dense", dtype="bfloat16")


class Planted(Greedy):
    """In its sixth call it emits the token that is nearest to `loss` nat below the best."""

    name = "planted"

    def __init__(self, loss):
        self.loss, self.calls = loss, 0

    def verify(self, drafts, proposal, scores, generator):
        verified = super().verify(drafts, proposal, scores, generator)
        self.calls += 1
        if self.calls != 6:
            return verified
        row = scores[verified.accepted]
        return Verification(verified.accepted, int((row.max() - row - self.loss).abs().argmin()))


@pytest.mark.parametrize(
    ("name", "text", "loss"), [("toy-dense", 0, 1.0), pytest.param("toy-moe", 1, 2.5, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_planted_token_is_found_in_bfloat16(name, text, loss):
    checkpoint = ql.open(name, dtype="bfloat16")
    prompt = checkpoint.tokenizer(ql.tasks.texts("code")[text])["input_ids"][:30]
    options = {"depth": 3, "max_new_tokens": 24, "progress": False}
    found = check_lossless(checkpoint, [prompt], rule=Planted(loss), **options)
    assert found.verdict == "NOT lossless"
    assert found.fault.component == "verdict rule"
    assert found.fault.round == 4
    assert found.fault.components["verdict rule"] == float(found.rounds["regret"][4]) > 0.8
    assert found.fault.allowed["verdict rule"] <= found.detectable < 0.5
    assert check_lossless(checkpoint, [prompt], **options)


def test_the_smallest_detectable_loss_is_printed(bfloat16, prompts):
    found = check_lossless(bfloat16, prompts(bfloat16), depth=2, max_new_tokens=24, progress=False)
    assert found
    assert found.detectable == float(found.rounds["allowed_regret"].max())
    assert 2 * found.noise_floor["verdict rule"] <= float(found.rounds["allowed_regret"].min())
    median = float(found.rounds["allowed_regret"].median())
    line = (
        f"  detects every token more than {found.detectable:.3g} nat below the best; "
        f"in half of the rounds, more than {median:.3g} nat"
    )
    assert line in repr(found).splitlines()
    assert line in found._repr_html_()


@pytest.mark.slow
def test_wrong_logits_of_the_verify_pass_do_not_raise_the_bound(bfloat16, prompts):
    """The noise comes from other readings of the text."""

    class Louder(RerunRollback):
        """While a block is verified, lm_head returns wrong logits; states are right."""

        name = "louder"

        @contextmanager
        def verifying(self, context):
            lm_head, generator = context.model.get_output_embeddings(), torch.Generator().manual_seed(0)
            wrong = 0.25 * torch.randn(len(lm_head.weight), generator=generator)
            self.hook = lm_head.register_forward_hook(lambda _, __, logits: logits + wrong.to(logits))
            with super().verifying(context):
                yield

        def keep(self, context, kept):
            self.hook.remove()
            super().keep(context, kept)

    options = {"depth": 3, "max_new_tokens": 24, "progress": False}
    found = check_lossless(bfloat16, prompts(bfloat16), rollback=Louder, **options)
    assert found.verdict == "NOT lossless"
    assert found.fault.component == "verdict rule"
    assert found.detectable < 0.5


@pytest.mark.slow
def test_an_error_of_a_state_is_allowed_ten_times_its_floor_in_bfloat16(bfloat16, prompts):
    """Here keys and values have 40 times their floor, a relative error of a third."""
    options = {"depth": 5, "max_new_tokens": 24, "progress": False}
    found = check_lossless(bfloat16, prompts(bfloat16, 2, 48), rollback=faulty.EmptyKeys, **options)
    assert found.verdict == "NOT lossless"
    assert found.fault.allowed["recurrent"] == 10 * max(found.noise_floor["recurrent"], torch.finfo(torch.bfloat16).eps)
    assert check_lossless(bfloat16, prompts(bfloat16, 2, 48), **options)


def test_bad_input(dense, headless):
    with pytest.raises(NoMtpHead):
        check_lossless(headless, "x", depth=1)
    with pytest.raises(BadArgument, match="No round was run"):
        check_lossless(dense, [[5, 6]], depth=1, max_new_tokens=1, progress=False)
    with pytest.raises(BadArgument, match="which temperature=0 does not define"):
        check_lossless(dense, [[5, 6]], depth=1, rule="exact_match", progress=False)


@pytest.mark.parametrize("part", ["recurrent", "convolution", "attention"])
def test_a_rollback_that_leaves_nan_is_found(part):
    """Comparisons with NaN are false, so NaN must not count as an error within bounds."""

    class Nan(ReplayRollback):
        def keep(self, context, kept):
            super().keep(context, kept)
            if part == "attention":
                context.attention[0].keys[..., -1, :] = float("nan")
            else:
                getattr(context, part)[0].fill_(float("nan"))

    checkpoint = ql.open("toy-dense")
    prompt = checkpoint.tokenizer(ql.tasks.texts("code")[0])["input_ids"][:20]
    found = ql.speculative.check_lossless(checkpoint, [prompt], depth=2, max_new_tokens=4, rollback=Nan, progress=False)
    assert found.verdict == "NOT lossless"
    assert found.fault.round == 0


def test_a_model_whose_logits_are_nan():
    checkpoint = ql.open("toy-dense")
    checkpoint.model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(NonFiniteWeights, match="gives logits that are NaN"):
        ql.speculative.check_lossless(checkpoint, [[1, 2, 3, 4]], depth=2, max_new_tokens=4, progress=False)
