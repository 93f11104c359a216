"""Audits of the toys, of broken copies, and of code that runs them with a wrong contract."""

import dataclasses

import numpy as np
import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument, BadPrompt, NoMtpHead
from qwenlab.speculative.audit.audit import audit
from qwenlab.speculative.audit.contract import Contract
from qwenlab.speculative.audit.trials import random_head
from tests.speculative.miswired import (
    blind,
    fp8_read_raw,
    halves_swapped,
    made_for_before_the_norm,
    norms_shifted,
    uneven,
    with_head,
)

BROKEN = {
    "norms = w": lambda head: norms_shifted(head, 1),
    "norms = 2 + w": lambda head: norms_shifted(head, -1),
    "order = hidden first": halves_swapped,
    "weights = scaled like the target model": fp8_read_raw,
}
WRONGLY_RUN = [*[*Contract().variants().values()][1:6], Contract(cache="empty")]
SIX = {"domain": "arithmetic", "count": 6, "max_tokens": 48}
EIGHT = {"domain": "code", "count": 8, "max_tokens": 64}
slow = pytest.mark.slow


def audited(checkpoint, *, domain, count, max_tokens, depth=1, **options):
    texts = ql.tasks.texts(domain, count)
    return audit(checkpoint, texts, depth=depth, max_tokens=max_tokens, progress=False, **options)


def assert_wants(found, label, assumed):
    assert (found.verdict, found.faults[0]) == ("fault found", label), repr(found)
    assert found.wanted == assumed.changed(label)
    assert not found
    assert found.diagnosis.startswith(f"the weights want {label}: ")


def right_setting(contract):
    """The label of the one setting in which a contract is not the published heads'."""
    (label,) = (label for label in contract.variants() if contract.changed(label) == Contract())
    return label


@pytest.mark.parametrize("texts", [SIX, pytest.param(EIGHT, marks=slow)], ids=["arithmetic", "code"])
def test_a_healthy_head_has_no_fault(checkpoint, texts):
    found = audited(checkpoint, depth=2, **texts)
    assert found and found.verdict == "no fault found", repr(found)
    assert (found.faults, found.wanted) == ((), Contract())
    assert found.settings["verdict"].sel(setting="order = hidden first") == "worse"
    assert float(found.settings["agreement"][0, 0]) > 3 * float(
        found.controls["agreement"].sel(control="commonest token")
    )


@pytest.mark.parametrize("label", BROKEN)
def test_a_broken_copy_is_detected(dense, label):
    assert_wants(audited(with_head(dense, BROKEN[label](dense.mtp)), **SIX), label, Contract())


@pytest.mark.parametrize("contract", [Contract(tokens="x[p]"), Contract(cache="empty")], ids=right_setting)
def test_code_that_runs_it_wrongly_is_detected(dense, contract):
    assert_wants(audited(dense, contract=contract, **SIX), right_setting(contract), contract)


@slow
@pytest.mark.parametrize("label", BROKEN)
def test_a_broken_copy_of_either_toy_is_detected_on_code(checkpoint, label):
    assert_wants(audited(with_head(checkpoint, BROKEN[label](checkpoint.mtp)), **EIGHT), label, Contract())


@slow
@pytest.mark.parametrize("contract", WRONGLY_RUN, ids=right_setting)
def test_code_that_runs_either_toy_wrongly_is_detected_on_code(checkpoint, contract):
    assert_wants(audited(checkpoint, contract=contract, **EIGHT), right_setting(contract), contract)


@pytest.fixture(scope="module")
def uneven_dense(dense):
    return uneven(dense)


def test_an_uneven_final_norm_changes_no_verdict(uneven_dense, dense):
    found = audited(uneven_dense, **SIX)
    assert found, repr(found)
    even = audited(dense, **SIX)
    rates = [float(each.settings["shared_probability"][0, 0]) for each in (found, even)]
    assert rates[0] == pytest.approx(rates[1], abs=0.02)
    assert found.settings["verdict"].sel(setting="hidden = before the final norm") == "worse"
    assert even.settings["verdict"].sel(setting="hidden = before the final norm") != "worse"


@pytest.mark.parametrize("contract", [Contract(hidden="before the final norm"), Contract(chain="before mtp.norm")])
def test_states_of_the_wrong_side_of_a_norm_are_detected(uneven_dense, contract):
    assert_wants(audited(uneven_dense, contract=contract, depth=2, **SIX), right_setting(contract), contract)


def test_a_head_made_for_states_before_the_norm_is_detected(uneven_dense):
    broken = with_head(uneven_dense, made_for_before_the_norm(uneven_dense.mtp))
    assert_wants(audited(broken, **SIX), "hidden = before the final norm", Contract())


@slow
@pytest.mark.parametrize("contract", [Contract(hidden="before the final norm"), Contract(chain="before mtp.norm")])
def test_states_of_the_wrong_side_of_a_norm_are_detected_on_code(checkpoint, contract):
    found = audited(uneven(checkpoint), contract=contract, depth=2, **EIGHT)
    assert_wants(found, right_setting(contract), contract)


@slow
def test_a_head_of_either_toy_made_for_states_before_the_norm_is_detected_on_code(checkpoint):
    other = uneven(checkpoint)
    broken = with_head(other, made_for_before_the_norm(other.mtp))
    assert_wants(audited(broken, **EIGHT), "hidden = before the final norm", Contract())


def test_the_sides_of_an_even_norm_are_not_distinguished(dense):
    """Even folded the wrong way, a factor that varies by 5 % of its mean changes almost no draft."""
    found = audited(with_head(dense, made_for_before_the_norm(dense.mtp)), **SIX)
    assert found
    assert found.settings["verdict"].sel(setting="hidden = before the final norm") in ("same", "cannot tell")
    assert "the scale of the target model's final norm varies by 5% of its mean" in repr(found)


@slow
def test_two_faults_are_found_one_after_the_other(dense):
    broken = with_head(dense, halves_swapped(norms_shifted(dense.mtp, 1)))
    first = audited(broken, **SIX)
    assert_wants(first, "order = hidden first", Contract())
    second = audited(broken, contract=first.wanted, **SIX)
    assert_wants(second, "norms = w", first.wanted)
    assert audited(broken, contract=second.wanted, **SIX)


@pytest.mark.parametrize(
    ("broken", "why"),
    [(lambda head: random_head(head, 5), "commonest token"), pytest.param(blind, "shuffled", marks=slow)],
    ids=["random", "blind"],
)
def test_a_head_at_chance_gets_no_verdict(dense, broken, why):
    found = audited(with_head(dense, broken(dense.mtp)), **EIGHT)
    assert (found.verdict, found.faults, bool(found)) == ("no verdict", (), False), repr(found)
    assert found.wanted == found.assumed
    assert why in found.diagnosis


@pytest.fixture(scope="module")
def healthy(dense):
    return audited(dense, depth=2, seed=3, **SIX)


def test_the_table_has_every_setting(healthy, dense):
    data = healthy.settings
    assert data["setting"].values.tolist() == ["assumed", *Contract().variants()]
    assert data["draft"].values.tolist() == [1, 2]
    assert data["drafts"].sel(draft=1).values.tolist() == [6 * 46] * 10
    assert (data.attrs["texts"], data.attrs["comparisons"], data.attrs["seed"]) == (6, 18, 3)
    for name in ("agreement", "shared_probability"):
        effect, interval = data[f"{name}_effect"], data[f"{name}_effect_interval"]
        np.testing.assert_allclose(effect, data[name] - data[name].isel(setting=0))
        sure = effect.notnull() & interval.notnull().all("bound")
        assert ((interval.sel(bound="low") <= effect) | ~sure).all() and (
            (interval.sel(bound="high") >= effect) | ~sure
        ).all()
        assert interval.attrs["level"] == pytest.approx(1 - 0.05 / 18)
        assert data[f"{name}_interval"].attrs["level"] == 0.95
    assert healthy.facts["checkpoint_hash"] == dense.facts.hash
    assert (healthy.facts["tokens"], healthy.facts["seed"]) == (6 * 48, 3)


def test_controls_are_below_the_head(healthy):
    own = healthy.controls["agreement"].sel(control="wanted contract")
    assert float(own) == float(healthy.settings["agreement"][0, 0])
    assert (healthy.controls["agreement"].isel(control=slice(1, None)) < 0.6 * own).all()


def test_repr_has_verdict_settings_and_controls(healthy):
    text = repr(healthy)
    assert text.startswith("no fault found: draft 1 agrees in ")
    assert "276 drafts in 6 texts, teacher-forced, rule greedy" in text
    assert "chain = before mtp.norm, draft 2" in text
    assert "control: shuffled hidden" in text
    assert "matrices: root mean square 0.94 to 1.1 of the target model's" in text
    assert max(map(len, text.splitlines())) < 200
    html = dataclasses.replace(healthy, diagnosis="<b>")._repr_html_()
    assert html.partition(">")[2].startswith("&lt;b&gt;")


def test_depth_1_leaves_the_chain_out(dense):
    found = audited(dense, **SIX)
    assert not any(label.startswith("chain") for label in found.settings["setting"].values.tolist())
    assert found.settings.attrs["comparisons"] == 16


def test_an_audit_leaves_no_change(dense):
    before = {name: weight.clone() for name, weight in dense.mtp.state_dict().items()}
    audited(dense, **SIX)
    for name, weight in dense.mtp.state_dict().items():
        assert weight.equal(before[name])
    assert not dense.mtp.norm._forward_pre_hooks
    assert "forward" not in vars(dense.model.get_decoder().norm)


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        (["a text"] * 3, {}, BadArgument, "3 texts: an interval over texts needs 4 or more.\nGive more texts"),
        ("one text", {}, BadArgument, "1 text: an interval"),
        (["a text"] * 4, {"level": 1}, BadArgument, r"audit\(level=1\): give a probability between 0 and 1"),
        (["a text"] * 4, {"depth": 0}, BadArgument, "depth=0"),
        (
            ["a text"] * 4,
            {"max_tokens": 2},
            BadArgument,
            r"audit\(max_tokens=2\): give an integer number of tokens, 3 or more",
        ),
        (
            [[1, 2, 3]] * 3 + [[1, 2]],
            {},
            BadPrompt,
            "Text 3 has 2 tokens, and drafts are compared from the third token on",
        ),
        ([], {}, BadPrompt, "There is no text"),
    ],
)
def test_bad_input(dense, texts, options, error, message):
    with pytest.raises(error, match="(?s)^" + message):
        audit(dense, texts, progress=False, **options)


def test_a_checkpoint_without_a_head(headless):
    with pytest.raises(NoMtpHead):
        audit(headless, ["a text"] * 4, progress=False)
