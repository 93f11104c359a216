"""What all statistics share: what they read, how they refuse, what they say of their numbers."""

import importlib
import json
import pkgutil

import numpy as np
import pytest

from qwenlab import stats
from qwenlab.errors import BadArgument, MissingVariable, NotARecording, NothingMeasured, NotWatched
from qwenlab.stats.source import statistic
from qwenlab.testing.recordings import made_recording

BY_NODE = {
    "deltanet": ["half_life", "writing", "key_collision", "gates"],
    "attention": ["attention_distance", "gates"],
    "routing": [
        "expert_load",
        "routing",
        "coactivation",
        "layer_overlap",
        "distinct_experts",
        "unused_experts",
        "specialisation",
    ],
    "residual": ["residual"],
    "timing": ["time_by_kind"],
    "memory": ["memory"],
}
CASES = [(node, name) for node, names in BY_NODE.items() for name in names]


@pytest.fixture(scope="module")
def recording():
    return made_recording()


def test_every_public_statistic_is_tried_here():
    assert {name for _, name in CASES} | {"layer_table"} == set(stats.__all__)


def test_names_stay_functions_when_their_files_are_imported_first():
    for module in pkgutil.iter_modules(stats.__path__):
        importlib.import_module(f"qwenlab.stats.{module.name}")
    assert all(callable(getattr(stats, name)) for name in stats.__all__)


@pytest.mark.parametrize(("node", "name"), CASES)
def test_a_recording_and_its_node_give_the_same(node, name, recording):
    told = getattr(stats, name)(recording)
    from_node = getattr(stats, name)(recording[node])
    if name != "gates":
        assert told.drop_attrs().identical(from_node.drop_attrs())
    assert told.attrs["statistic"] == name
    assert told.attrs["checkpoint"] == "made-up"
    assert json.loads(told.attrs["sample"]) == {}


@pytest.mark.parametrize("name", stats.__all__)
def test_every_number_says_its_units_and_meaning(name, recording):
    told = getattr(stats, name)(recording)
    for variable in told.data_vars.values():
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]
    for interval in (v for v in told.data_vars if str(v).endswith("_interval")):
        assert told[interval].attrs["interval"]
        assert told[interval].attrs["level"] == 0.95
        low, high = (told[interval].sel(bound=end) for end in ("low", "high"))
        assert not (low > high).any()


@pytest.mark.parametrize(("node", "name"), CASES)
def test_the_recording_is_left_as_it_was(node, name, recording):
    before = recording[node].copy(deep=True)
    getattr(stats, name)(recording)
    assert recording[node].identical(before)


@pytest.mark.parametrize(("node", "name"), [case for case in CASES if case[1] != "gates"])
def test_a_probe_that_did_not_watch_is_named(node, name):
    other = "memory" if node != "memory" else "routing"
    with pytest.raises(NotWatched, match=f"No '{node}' was recorded"):
        getattr(stats, name)(made_recording(probes=[other]))


@pytest.mark.parametrize(("node", "name"), CASES)
def test_another_dataset_is_refused_by_what_it_lacks(node, name, recording):
    wrong = recording["memory" if node != "memory" else "residual"]
    if name == "gates" and node == "attention":
        wrong = recording["attention"].drop_vars("gate_hist")
    with pytest.raises(MissingVariable, match=rf"(?s)No .* in this Dataset; it has .*recording\['{node}'\]"):
        getattr(stats, name)(wrong)


def test_what_is_no_dataset_is_refused():
    with pytest.raises(NotARecording, match="this is dict"):
        stats.half_life({})


def test_nothing_read_is_refused():
    node = made_recording()["routing"]
    node["tokens"] = node["tokens"] * 0
    with pytest.raises(NothingMeasured, match=r"Routing probe measured no token\.\nRun .* of qwenlab\.watch\.$"):
        stats.routing(node)
    node.attrs["sample"] = '{"every": 8}'
    with pytest.raises(NothingMeasured, match=r"texts are short, with Routing\(every=1\): .* of every 8\.$"):
        stats.routing(node)


@pytest.mark.parametrize("wrong", [(0.0, 0.5), (1.0,), 0.5, (50,)])
def test_quantiles_lie_between_0_and_1(wrong, recording):
    with pytest.raises(BadArgument, match="between 0 and 1"):
        stats.half_life(recording, quantiles=wrong)


def test_an_unknown_keyword_is_an_error(recording):
    with pytest.raises(TypeError, match="bylabel"):
        stats.half_life(recording, bylabel=True)


def test_one_text_has_estimates_but_no_intervals():
    told = stats.half_life(made_recording(labels=["all"], sequences=1))
    assert told["half_life_mean_log"].notnull().all()
    assert told["half_life_mean_log_interval"].isnull().all()


def test_layers_that_do_not_match_are_an_error_not_dropped(recording):
    node = recording["routing"]

    @statistic
    def share(load, tokens):
        return (load / tokens).to_dataset(name="share")

    with pytest.raises(ValueError, match="layer"):
        share(node["load"], node["tokens"].assign_coords(layer=node["layer"] + 1))


def test_numpy_warns_of_nothing(recording):
    with np.errstate(all="raise"):
        stats.half_life(recording)
