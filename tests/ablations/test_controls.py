"""The law of controls: matched, of other parts, different from one another, the same for the same seed."""

import math
import random
import time
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import assume, given, settings, strategies as st

from qwenlab.ablations.ablation import Ablation, combined
from qwenlab.ablations.controls import MATCHES, TOLERANCE, controls, matched_controls
from qwenlab.ablations.units import units
from qwenlab.errors import BadArgument
from qwenlab.interventions.experts import MaskExperts
from qwenlab.interventions.values import Zero

KINDS = ("linear_attention", "full_attention")


def made(kinds, sizes):
    return [
        Ablation(f"mixer {n}", (Zero(f"layers.{n}.mixer"),), "mixer", (f"layers.{n}.mixer",), n, kind, size)
        for n, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    ]


@st.composite
def cases(draw):
    """Parts of a model, some of them as one ablation, and how it is to be matched."""
    count = draw(st.integers(2, 9))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=count, max_size=count))
    sizes = draw(st.lists(st.sampled_from([100, 105, 40, 60, 300]), min_size=count, max_size=count))
    among = made(kinds, sizes)
    chosen = draw(st.lists(st.sampled_from(among), min_size=1, max_size=3, unique_by=lambda each: each.name))
    match, number, seed = draw(st.sampled_from(MATCHES)), draw(st.integers(1, 6)), draw(st.integers(0, 99))
    return combined(chosen, "chosen"), among, match, number, seed


@settings(max_examples=100)
@given(case=cases())
def test_law(case):
    ablation, among, match, number, seed = case
    others = [each for each in among if each.name not in {f"mixer {p.split('.')[1]}" for p in ablation.parts}]
    if match == "kind":
        others = [each for each in others if each.kind == ablation.kind]
    count = len(ablation.parts)
    possible = math.comb(len(others), count)
    try:
        found = controls([ablation], among, match=match, number=number, seed=seed)
    except BadArgument:
        if match != "parameters":
            assert possible == 0
        return
    if match == "parameters":
        assert 1 <= len(found) <= number
    else:
        assert len(found) == min(number, possible)
    assert len({frozenset(each.parts) for each in found}) == len({each.name for each in found}) == len(found)
    for control in found:
        assert not control.overlaps(ablation)
        assert set(control.parts) <= {part for each in others for part in each.parts}
        assert control.control_of == "chosen"
        if match == "parameters":
            assert abs(control.parameters - ablation.parameters) <= TOLERANCE * ablation.parameters + 1e-9
        else:
            assert len(control.parts) == count
        if match == "kind" and ablation.kind:
            assert control.kind == ablation.kind
    assert controls([ablation], among, match=match, number=number, seed=seed) == found


def slow(ablation, pool, match, number, seed):
    """The rule of the draws, spelled out: every part is compared with every other."""
    pool = sorted(pool, key=lambda part: (part.layer, part.parts))
    others = [each for each in pool if not each.overlaps(ablation) and (match != "kind" or each.kind == ablation.kind)]
    rng = random.Random(f"controls-{seed}-{ablation.name}-{match}")

    def of_number(count):
        if math.comb(len(others), count) <= 1000:
            listed = list(combinations(range(len(others)), count))
            yield from rng.sample(listed, len(listed))
        while math.comb(len(others), count) > 1000:
            yield tuple(sorted(rng.sample(range(len(others)), count)))

    def of_size():
        for _ in range(200 if ablation.parameters else 0):
            chosen = []
            for index in rng.sample(range(len(others)), len(others)):
                if sum(others[n].parameters for n in [*chosen, index]) <= (1 + 0.1) * ablation.parameters:
                    chosen.append(index)
            if sum(others[n].parameters for n in chosen) >= (1 - 0.1) * ablation.parameters:
                yield tuple(sorted(chosen))

    found = []
    for drawn in of_size() if match == "parameters" else of_number(len(ablation.parts)):
        if drawn not in found:
            found.append(drawn)
        if len(found) == number:
            break
    return [tuple(others[n].parts[0] for n in drawn) for drawn in found]


@st.composite
def nested(draw):
    """Whole mixers and heads of other mixers as a pool, and several ablations: of its parts, their parts or wholes."""
    layers, heads = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    wholes = {layer for layer in range(layers) if draw(st.booleans())}
    pool, made_of = [], []
    for layer in range(layers):
        kind, mixer = draw(st.sampled_from(KINDS)), f"layers.{layer}.mixer"
        whole = Ablation(f"mixer {layer}", (Zero(mixer),), "mixer", (mixer,), layer, kind, draw(st.integers(0, 60)))
        parts = [
            Ablation(f"head {layer}.{n}", (Zero(f"{mixer}.heads", heads=[n]),), "head", (f"{mixer}.heads[{n}]",), layer,
                     kind, draw(st.integers(0, 20)))
            for n in range(heads)
        ]  # fmt: skip
        pool += [whole] if layer in wholes else parts
        made_of.append([whole, *parts])
    chosen = []
    for index in range(draw(st.integers(1, 4))):
        of = draw(st.lists(st.sampled_from(made_of), min_size=1, max_size=3, unique_by=id))
        parts = [part for each in of for part in draw(st.sampled_from([each[:1], each[1:2], each[1:4]]))]
        chosen.append(combined(parts, f"chosen {index}"))
    return chosen, draw(st.permutations(pool))


@settings(max_examples=150)
@given(case=nested(), match=st.sampled_from(MATCHES), number=st.integers(1, 5), seed=st.integers(0, 99))
def test_it_is_the_slow_rule(case, match, number, seed):
    chosen, pool = case
    expected = {each.name: slow(each, pool, match, number, seed) for each in chosen}
    found, refused = matched_controls(chosen, pool, match=match, number=number, seed=seed, progress=False)
    drawn = {each.name: [one.parts for one in found if one.control_of == each.name] for each in chosen}
    assert drawn == expected
    assert list(refused) == [name for name, sets in expected.items() if not sets]
    assert [each.control_of for each in found] == [name for name, sets in expected.items() for _ in sets]


@pytest.mark.slow
def test_the_controls_of_ten_thousand_experts_take_seconds():
    experts = [
        Ablation(f"expert {layer}.{n}", (MaskExperts([n], layers=[layer]),), "expert",
                 (f"layers.{layer}.mlp.experts[{n}]",), layer, KINDS[0], 100)
        for layer in range(40)
        for n in range(256)
    ]  # fmt: skip
    began = time.process_time()
    found = controls(experts, experts, progress=False)
    assert time.process_time() - began < 10
    assert len(found) == 3 * 10_240
    for each in experts[::2_000]:
        assert controls([each], experts, progress=False) == [one for one in found if one.control_of == each.name]


@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_lists_in_another_order_or_with_more_in_them_draw_the_same(case, data):
    ablation, among, match, number, seed = case
    how = dict(match=match, number=number, seed=seed)
    try:
        found = controls([ablation], among, **how)
    except BadArgument:
        assume(False)
    assert controls([ablation], data.draw(st.permutations(among)), **how) == found
    mixed = data.draw(st.permutations([ablation, *_with_controls(among, how)]))
    assert [each for each in controls(mixed, among, **how) if each.control_of == "chosen"] == found


def _with_controls(among, how):
    """Those that have controls of their own, as single ablations."""
    for each in among:
        try:
            controls([each], among, **how)
        except BadArgument:
            continue
        yield each


def test_another_seed_draws_others():
    among = made(KINDS[:1] * 40, [100] * 40)
    drawn = {controls(among[:1], among, number=1, seed=seed)[0].parts for seed in range(8)}
    assert len(drawn) > 3


def test_every_set_is_as_likely_as_any():
    among = made(KINDS[:1] * 5, [100] * 5)
    firsts = [controls(among[:1], among, number=1, seed=seed)[0].name[-1] for seed in range(400)]
    assert {name: 70 < firsts.count(name) < 130 for name in "1234"} == dict.fromkeys("1234", True)


def test_names_say_what_they_are_of_and_what_they_are():
    among = made(KINDS[:1] * 3, [100] * 3)
    both = combined(among[:1], "first")
    names = [each.name for each in controls([both], among, number=9)]
    assert sorted(name.split(": ")[1] for name in names) == ["mixer 1", "mixer 2"]
    assert [name.split(": ")[0] for name in names] == ["control 0 of first", "control 1 of first"]


def test_many_parts_are_drawn_and_not_listed():
    among = made(KINDS[:1] * 60, [100] * 60)
    found = controls([combined(among[:20], "many")], among, number=30)
    assert len({each.parts for each in found}) == 30
    assert all(len(each.parts) == 20 for each in found)


def test_a_head_is_not_held_against_its_own_mixer(moe):
    heads, mixers = units(moe, "head"), units(moe, "mixer")
    found = controls(heads[:1], mixers, number=9)
    assert sorted(each.layer for each in found) == [1, 2, 3]


def test_what_controls_refuses(moe):
    mixers = units(moe)
    with pytest.raises(BadArgument, match=r"controls\(match='size'\): give one of 'number', 'kind', 'parameters'"):
        controls(mixers, mixers, match="size")
    for some, among in ((mixers[0], mixers), ([], mixers), (mixers, mixers[0]), (mixers, ["mixer 1"])):
        with pytest.raises(BadArgument, match=r"controls\(.*\): give a list of at least one ablation"):
            controls(some, among)
    with pytest.raises(BadArgument, match=r"controls\(ablations, pool\): several ablations are named 'mixer 0'"):
        controls([mixers[0], mixers[0]], mixers)
    for number in (0, True, 1.5):
        with pytest.raises(BadArgument, match=rf"controls\(number={number!r}\): give an integer, 1 or more"):
            controls(mixers, mixers, number=number)
    with pytest.raises(BadArgument, match=r"controls\(pool=\.\.\.\): 'all linear_attention' has 3 parts"):
        controls(mixers, units(moe, "kind"))
    for inside, names in (
        (units(moe, "layer", layers=[2]), "layer 2 and mixer 2"),
        (units(moe, "head", layers=[1]), r"mixer 1 and head 1\.0"),
        ([replace(mixers[0], name="the same")], "mixer 0 and the same"),
    ):
        with pytest.raises(BadArgument, match=rf"{names} overlap\.\nGive"):
            controls(mixers, [*mixers, *inside])
    with pytest.raises(
        BadArgument, match=r"'all linear_attention' has 3 parts and 52,\d+ parameters; no set of the 1 other parts"
    ):
        controls(units(moe, "kind"), mixers)
    with pytest.raises(
        BadArgument, match=r"controls\(match='kind'\): 'mixer 3' has 1 parts .* no set of the 0 other parts"
    ):
        controls(mixers[3:], mixers, match="kind")
    gates = units(moe, "gate")
    with pytest.raises(BadArgument, match=r"'gate 0' has 1 parts and 0 parameters"):
        controls(gates[:1], gates, match="parameters")
