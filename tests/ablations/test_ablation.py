"""Ablations by themselves: how they are written, what overlaps, what they make together."""

from dataclasses import replace

import pytest

from qwenlab.ablations.ablation import Ablation, check_ablations, combined, coordinates
from qwenlab.errors import BadArgument
from qwenlab.interventions.values import Identity, Zero


def of(name, part, layer=0, kind="linear_attention"):
    return Ablation(name, (Zero(part),), "mixer", (part,), layer, kind, 100)


MIXERS = [of(f"mixer {layer}", f"layers.{layer}.mixer", layer) for layer in range(12)]


def test_interventions_are_written_as_one():
    both = combined(MIXERS[:2], "both")
    assert both.intervention == "Zero('layers.0.mixer'), Zero('layers.1.mixer')"
    assert both.parts == ("layers.0.mixer", "layers.1.mixer")


@pytest.mark.parametrize(
    ("part", "overlap"),
    [
        ("layers.1.mixer", True),
        ("layers.1", True),
        ("layers.1.mixer.heads[0]", True),
        ("layers.1.mixer.decay", True),
        ("layers.1.mlp", False),
        ("layers.10", False),
        ("layers.10.mixer", False),
        ("layers.2.mixer", False),
    ],
)
def test_a_part_overlaps_with_what_holds_it_and_what_it_holds(part, overlap):
    mixer = MIXERS[1]
    other = Ablation("other", (Identity([1]),), "layer", (part,), 1, "linear_attention", 0)
    assert mixer.overlaps(other) is other.overlaps(mixer) is overlap
    assert combined([MIXERS[5], mixer], "set").overlaps(other) is overlap


def test_sums_and_what_parts_share_are_kept():
    attention = of("mixer 3", "layers.3.mixer", 3, "full_attention")
    both = combined([MIXERS[0], attention], "both", control_of="mixer 7")
    assert (both.unit, both.layer, both.kind, both.parameters, both.control_of) == ("set", -1, "", 200, "mixer 7")
    alike = combined(MIXERS[:2], "both")
    assert (alike.layer, alike.kind) == (-1, "linear_attention")
    alone = combined(MIXERS[4:5], "one")
    assert (alone.unit, alone.layer, alone.kind) == ("mixer", 4, "linear_attention")


def test_what_cannot_be_combined():
    again = replace(MIXERS[0], name="again")
    with pytest.raises(BadArgument, match=r"combined\('twice'\): mixer 0 and again overlap\.\nGive ablations of"):
        combined([MIXERS[0], again], "twice")
    with pytest.raises(BadArgument, match=r"combined\(ablations, 'none'\): give a list of at least one ablation"):
        combined([], "none")


def test_coordinates_say_all_but_the_parts():
    coords = coordinates(MIXERS[:2])
    assert set(coords) == {"ablation", "unit", "layer", "kind", "intervention", "control_of", "parameters"}
    assert {dims for dims, _ in coords.values()} == {"ablation"}
    assert coords["ablation"][1] == ["mixer 0", "mixer 1"]
    assert coords["intervention"][1][1] == "Zero('layers.1.mixer')"


@pytest.mark.parametrize("given", [[], MIXERS[0], ["mixer 0"], [Zero("layers.0.mixer")], "mixer 0", 3, None])
def test_what_is_no_list_of_ablations(given):
    with pytest.raises(
        BadArgument, match=r"here: give a list of at least one ablation, for example from qwenlab\.ablations\.units"
    ):
        check_ablations("here", given)


def test_two_of_one_name():
    with pytest.raises(BadArgument, match=r"here: several ablations are named 'mixer 0'\.\nGive them different names"):
        check_ablations("here", [MIXERS[0], MIXERS[1], MIXERS[0]])
