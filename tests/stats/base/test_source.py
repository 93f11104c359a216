"""What all statistics share: what they read, how they refuse, what they say of their numbers."""

import importlib
import json
import pkgutil
import re

import numpy as np
import pytest
import xarray as xr

import qwenlab as ql
from qwenlab import stats
from qwenlab.errors import BadArgument, MissingVariable, NotARecording, NothingMeasured, ProbeNotRecorded
from qwenlab.record import Recording
from qwenlab.stats.base.source import statistic
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.ledgers import made_ledger
from qwenlab.testing.recordings import made_recording
from qwenlab.testing.traces import made_trace
from tests.planted.maps import made_maps
from tests.planted.states import made_states
from tests.planted.sweeps import made_ablated_acceptance, made_patching, made_sweep

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
    "implicit_attention": ["reach", "attention_map", "retrieval"],
    "softmax_attention": ["reach"],
    "deltastate": ["state_rank", "state_growth"],
    "retention": ["retention"],
    "state_precision": ["state_precision"],
    "rounds": ["acceptance", "by_depth", "calibration", "speedup"],
    "trace": ["agreement"],
    "ablations": ["ablations"],
    "ablated_acceptance": ["ablated_acceptance"],
    "patching": ["patching"],
}
NEEDS_MORE = {
    "by_depth": lambda source: stats.by_depth([source]),
    "speedup": lambda source: stats.speedup(source, COSTS),
    "attention_map": lambda source: stats.attention_map(source, layer=0, head=0),
    "retrieval": lambda source: stats.retrieval(source, QUESTIONS),
}
WIDTHS = np.arange(1, 6)
COSTS = xr.Dataset(
    {"plain_step": 1.0, "verify_step": ("width", 1 + WIDTHS / 10), "draft_step": 0.1, "rollback": 0.05},
    {"width": WIDTHS},
)
QUESTIONS = xr.Dataset(
    {
        "text": ("question", [0, 0]),
        "query": ("question", [4, 6]),
        "asked": ("question", [1, 0]),
        "value": (("question", "pair"), [[0, 2], [0, 2]]),
    }
)
OF_BOTH_KINDS = ("gates", "reach", "attention_map", "retrieval")  # of one node or of two, whichever were recorded
OF_OTHERS = (
    "expert_union",
    "ablation_findings",
    "ablation_table",
    "losses",
    "mean_over_texts",
)  # not of a recording's nodes
CASES = [(node, name) for node, names in BY_NODE.items() for name in names]


@pytest.fixture(scope="module")
def recording():
    made = made_recording()
    maps = made_maps().recording
    nodes = {name: each[name] for each in (made, maps, made_states().recording) for name in each}
    nodes |= {"rounds": made_ledger(), "trace": made_trace(), "ablations": made_sweep(layers=2, controls=1)}
    nodes |= {"ablated_acceptance": made_ablated_acceptance(layers=2), "patching": made_patching(layers=4)}
    return Recording(nodes, made.attrs)


def call(name, source):
    """A public statistic of a source, with what else it needs."""
    return NEEDS_MORE.get(name, getattr(stats, name))(source)


def test_every_public_statistic_is_tried_here():
    assert {name for _, name in CASES} | {"layer_table"} | set(OF_OTHERS) == set(stats.__all__)


def test_names_stay_functions_when_their_files_are_imported_first():
    for module in pkgutil.iter_modules(stats.__path__):
        importlib.import_module(f"qwenlab.stats.{module.name}")
    assert all(callable(getattr(stats, name)) for name in stats.__all__)


@pytest.mark.parametrize(("node", "name"), CASES)
def test_a_recording_and_its_node_give_the_same(node, name, recording):
    result, from_node = call(name, recording), call(name, recording[node])
    if name not in OF_BOTH_KINDS:
        assert result.drop_attrs().identical(from_node.drop_attrs())
    assert result.attrs["statistic"] == name
    assert result.attrs["checkpoint"] == "made-up"
    assert json.loads(result.attrs["sample"]) == {}


@pytest.mark.parametrize("name", sorted({*stats.__all__} - set(OF_OTHERS)))
def test_every_number_says_its_units_and_meaning(name, recording):
    result = call(name, recording)
    for variable in result.data_vars.values():
        assert variable.attrs["units"]
        assert variable.attrs["long_name"]
    for interval in (v for v in result.data_vars if str(v).endswith("_interval")):
        assert result[interval].attrs["interval"]
        assert result[interval].attrs["level"] == 0.95
        low, high = (result[interval].sel(bound=end) for end in ("low", "high"))
        assert not (low > high).any()


@pytest.mark.parametrize(("node", "name"), CASES)
def test_the_recording_is_left_as_it_was(node, name, recording):
    before = recording[node].copy(deep=True)
    call(name, recording)
    assert recording[node].identical(before)


@pytest.mark.parametrize(("node", "name"), [case for case in CASES if case[1] not in OF_BOTH_KINDS])
def test_a_probe_that_did_not_watch_is_named(node, name):
    other = "memory" if node != "memory" else "routing"
    with pytest.raises(ProbeNotRecorded, match=f"No '{node}' was recorded"):
        call(name, made_recording(probes=[other]))


@pytest.mark.parametrize(("node", "name"), CASES)
def test_another_dataset_is_an_error_that_names_missing_variables(node, name, recording):
    wrong = recording["memory" if node != "memory" else "residual"]
    if name == "gates" and node == "attention":
        wrong = recording["attention"].drop_vars("gate_hist")
    if name == "reach" and node == "softmax_attention":
        wrong = recording[node].drop_vars("distance_mass")
    with pytest.raises(MissingVariable, match=rf"(?s)No .* in this Dataset; it has .*recording\['{node}'\]"):
        call(name, wrong)


def test_other_types_are_errors():
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
    result = stats.half_life(made_recording(labels=["all"], sequences=1))
    assert result["half_life_mean_log"].notnull().all()
    assert result["half_life_mean_log_interval"].isnull().all()


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


ALLOWED = {"1", "nat", "nat/token", "bit", "bit/byte", "B", "B/token", "s", "s/token", "token", "token/s"}
ALLOWED |= {"times", "draft", "round", "prompt", "text", "chain", "pair", "expert", "block", "control", "direction"}
ALLOWED |= {"sequence", "id"}
ONE_UNIT = {
    r"(clean_)?loss": "nat/token",
    r"kl": "nat/token",
    r".*entropy(_independent)?": "nat",
    r"context": "token",
    r".*(_length|distance|half_life(_mean_\w+)?|horizon)": "token",
    r"(clean_)?accuracy|chance|.*_p_holm|p|p_\w+|significant": "1",
    r".*seconds_per_token": "s/token",
    r".*bytes": "B",
}
"""Names of quantities, of data and coordinates, and the one unit of each; an interval has that of its estimate."""
OTHER = {"label_entropy": "bit", "load_entropy": "share of ln E", "normalised_entropy": "share of ln E"}


def units_of(name):
    return OTHER.get(name) or next((unit for words, unit in ONE_UNIT.items() if re.fullmatch(words, name)), None)


def wrong_units(data):
    """Variables and coordinates whose units are unknown, or are not those of the quantity."""
    wrong = {}
    for name, variable in data.variables.items():
        units, quantity = variable.attrs.get("units"), str(name).removesuffix("_interval")
        known = units in ALLOWED or (str(units).startswith("share of ") and units != "share of")
        if units is not None and not (known and units_of(quantity) in (None, units)):
            wrong[name] = units
    return wrong


@pytest.mark.parametrize("name", sorted({*stats.__all__} - set(OF_OTHERS)))
def test_a_quantity_has_one_unit(name, recording):
    assert wrong_units(call(name, recording)) == {}


@pytest.mark.parametrize("score", ["loss", "kl", "accuracy", "agreement"])
def test_scores_of_a_sweep_have_the_units_of_their_statistics(score, recording):
    sweep = recording["ablations"]
    assert wrong_units(sweep) == {}
    assert stats.ablations(sweep, score=score)["effect"].attrs["units"] == sweep[score].attrs["units"]


def test_measures_have_those_units(tmp_path):
    opened, texts = ql.open(tiny_checkpoint(tmp_path)), ["one two three four", "five six seven"]
    for measure in (
        ql.tasks.losses(opened, texts),
        ql.tasks.measure(opened, [ql.tasks.text_task(opened, texts, name="plain")]),
        opened.anatomy.memory([16, 32]),
    ):
        assert wrong_units(measure) == {}
