"""Contracts: the effect of each setting on a head, compared with the head called by hand."""

import dataclasses

import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.speculative.audit.contract import FIRST_ROW, Contract, adapt_head, draft_with, read_target_states, settings
from qwenlab.speculative.draft_chains import draft_chains
from tests.speculative.miswired import halves_swapped, norms_shifted, uneven

VARIANTS = Contract().variants()


@pytest.fixture(scope="module")
def read(checkpoint, prompts):
    (tokens,) = prompts(checkpoint, count=1, length=24)
    return read_target_states(checkpoint.model, torch.tensor(tokens))


def drafts(contract, checkpoint, text, depth=2, factors=None):
    """Drafts [token, depth]; -1 where no chain begins."""
    out = torch.full((len(text.tokens), depth), -1)
    head = adapt_head(contract, checkpoint.mtp, factors or {})
    for step in draft_with(contract, head, text, depth=depth):
        out[step.rows.start : step.rows.stop, step.draft - 1] = step.tokens
    return out


@torch.no_grad()
def by_hand(head, tokens, hidden):
    """Draft 1 of each pair."""
    return head.logits(head(tokens[None], hidden[None])).argmax(dim=-1)[0]


def test_variants_differ_in_one_setting():
    assert list(VARIANTS) == [
        "hidden = before the final norm",
        "norms = w",
        "norms = 2 + w",
        "order = hidden first",
        "tokens = x[p]",
        "tokens = x[p+2]",
        "chain = before mtp.norm",
        "cache = empty",
        "weights = scaled like the target model",
    ]
    for label, variant in VARIANTS.items():
        name, value = label.split(" = ")
        assert dataclasses.asdict(variant) == dataclasses.asdict(Contract()) | {name: value}
        assert variant.changed(f"{name} = {settings()[name][0]}") == Contract()


def test_a_setting_that_is_not_known_is_an_error():
    with pytest.raises(BadArgument) as caught:
        Contract(norms="1+w")
    assert str(caught.value) == "Contract(norms='1+w'): give one of '1 + w', 'w', '2 + w'; did you mean '1 + w'?"


def test_states_are_those_before_and_after_the_final_norm(checkpoint, prompts):
    (tokens,) = prompts(checkpoint, count=1, length=24)
    with torch.no_grad():
        out = checkpoint.model(torch.tensor([tokens]), output_hidden_states=True)
        text = read_target_states(checkpoint.model, torch.tensor(tokens), chunk=10)
        torch.testing.assert_close(text.after, out.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(checkpoint.model.get_decoder().norm(text.before), text.after)
    assert torch.equal(text.target, out.logits[0].argmax(dim=-1))
    assert "forward" not in vars(checkpoint.model.get_decoder().norm)


def test_the_default_contract_drafts_like_a_trace(checkpoint, read):
    traced = (
        ql.speculative.trace(checkpoint, read.tokens.tolist(), depth=2, progress=False).dataset["draft_token"].values
    )
    assert drafts(Contract(), checkpoint, read)[FIRST_ROW:].tolist() == traced[FIRST_ROW:].tolist()


def test_the_default_contract_leaves_the_head_unchanged(checkpoint):
    assert adapt_head(Contract(), checkpoint.mtp, {"fc.weight": 2.0}) is checkpoint.mtp


@pytest.mark.parametrize("label", ["norms = w", "order = hidden first", "weights = scaled like the target model"])
def test_a_changed_head_shares_what_it_does_not_change(checkpoint, label):
    head, before = checkpoint.mtp, {name: w.clone() for name, w in checkpoint.mtp.state_dict().items()}
    other = adapt_head(VARIANTS[label], head, {"layers.0.self_attn.o_proj.weight": 0.5})
    assert other.target_model is head.target_model
    apart = {name for name, w in other.named_parameters() if w.data_ptr() != head.get_parameter(name).data_ptr()}
    every_norm = {f"{name}.weight" for name, part in head.named_modules() if isinstance(part, type(head.norm))}
    assert len(every_norm) == 7
    expected = {"norms": every_norm, "order": {"fc.weight"}, "weights": {"layers.0.self_attn.o_proj.weight"}}
    assert apart == expected[label.split(" = ")[0]]
    for name, weight in head.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("broken", "label"),
    [
        (lambda head: norms_shifted(head, 1), "norms = w"),
        (lambda head: norms_shifted(head, -1), "norms = 2 + w"),
        (halves_swapped, "order = hidden first"),
    ],
)
def test_the_right_contract_undoes_a_fault_of_the_weights(checkpoint, read, broken, label):
    copy = broken(checkpoint.mtp)
    repaired = adapt_head(VARIANTS[label], copy, {})
    with torch.no_grad():
        pairs = read.tokens[None, 1:], read.after[None, :-1]
        y = checkpoint.mtp(*pairs)
        torch.testing.assert_close(repaired(*pairs), y, atol=1e-3, rtol=1e-3)
        assert (copy(*pairs) - y).abs().max() > 0.1


def test_scaling_multiplies_the_matrices_that_have_a_factor(checkpoint):
    name = "layers.0.self_attn.o_proj.weight"
    scaled = adapt_head(VARIANTS["weights = scaled like the target model"], checkpoint.mtp, {name: 0.5})
    assert torch.equal(scaled.get_parameter(name), 0.5 * checkpoint.mtp.get_parameter(name))


def test_scaling_and_order_together(checkpoint):
    both = Contract(order="hidden first", weights="scaled like the target model")
    changed = adapt_head(both, checkpoint.mtp, {"fc.weight": 0.5}).fc.weight
    assert torch.equal(changed, 0.5 * halves_swapped(checkpoint.mtp).fc.weight)


def test_x_p_pairs_a_hidden_state_with_its_own_token(checkpoint, read):
    expected = by_hand(checkpoint.mtp, read.tokens[:-1], read.after[:-1])
    assert torch.equal(drafts(Contract(tokens="x[p]"), checkpoint, read)[1:, 0], expected)


def test_x_p_plus_2_pairs_a_hidden_state_with_the_token_two_on(checkpoint, read):
    expected = by_hand(checkpoint.mtp, read.tokens[2:], read.after[:-2])
    found = drafts(Contract(tokens="x[p+2]"), checkpoint, read)[:, 0]
    assert torch.equal(found[2:], expected)
    assert found[:2].tolist() == [-1, -1]


def test_the_hidden_state_before_the_norm(dense, prompts):
    dense = uneven(dense)
    (tokens,) = prompts(dense, count=1, length=24)
    text = read_target_states(dense.model, torch.tensor(tokens))
    found = drafts(Contract(hidden="before the final norm"), dense, text)[1:, 0]
    assert torch.equal(found, by_hand(dense.mtp, text.tokens[1:], text.before[:-1]))
    assert not torch.equal(found, by_hand(dense.mtp, text.tokens[1:], text.after[:-1]))


@pytest.mark.parametrize(
    ("contract", "options"),
    [
        (Contract(cache="empty"), {"prefilled": False}),
        (Contract(chain="before mtp.norm"), {"feedback": lambda before, after: before}),
    ],
)
def test_cache_and_chain_are_those_of_chains(checkpoint, read, contract, options):
    found = drafts(contract, checkpoint, read)
    with torch.no_grad():
        for step in draft_chains(checkpoint.mtp, read.tokens, read.after, depth=2, **options):
            assert torch.equal(found[step.rows.start : step.rows.stop, step.draft - 1], step.tokens)


@torch.no_grad()
@pytest.mark.parametrize("label", ["norms = 1 + w", *VARIANTS])
def test_no_draft_looks_ahead(dense, prompts, label):
    """The chain of row t may use x[..t] and h[..t-1]: otherwise a contract could see the token that it drafts."""
    (tokens,) = prompts(dense, count=1, length=24)
    text, row = read_target_states(dense.model, torch.tensor(tokens)), 11
    other = dataclasses.replace(
        text, tokens=text.tokens.clone(), after=text.after.clone(), before=text.before.clone(), target=text.target
    )
    other.tokens[row + 1 :], other.after[row:], other.before[row:] = 7, 1.0, 1.0
    contract = Contract().changed(label)
    scale = {"fc.weight": 0.5}
    seen, blind = (drafts(contract, dense, each, factors=scale) for each in (text, other))
    assert torch.equal(seen[: row + 1], blind[: row + 1])
    assert not torch.equal(seen[row + 1 :], blind[row + 1 :])
