"""Adding up recordings: the same as having read everything together."""

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from qwenlab import stats
from qwenlab.errors import CannotMerge
from qwenlab.record import Recording, merge
from qwenlab.record.provenance import cropped_attrs
from qwenlab.testing import planted
from qwenlab.testing.ledgers import replayed
from qwenlab.testing.recordings import made, made_recording
from qwenlab.testing.traces import made_trace


def part(case, sequences):
    """The recording of some of a case's sequences, as if they alone had been read."""
    wanted = np.isin(case.texts.sequence, sequences)
    start = case.texts.sequence[wanted][0]
    read = type(case.texts)(
        case.texts.labels, case.texts.sequence[wanted] - start, case.texts.position[wanted], case.texts.label[wanted]
    )
    nodes = {
        "deltanet": planted.deltanet(read, cut(case.deltanet, wanted, sequences), case.decoder),
        "attention": planted.attention(read, cut(case.attention, wanted, sequences), case.decoder),
        "routing": planted.routing(read, cut(case.routing, wanted, sequences), case.decoder),
        "residual": planted.residual(read, cut(case.residual, wanted, sequences), case.decoder),
    }
    counts = {name: int((read.label == number).sum()) for number, name in enumerate(read.labels)}
    facts = {"sequences": len(sequences), "tokens": int(wanted.sum()), "prompts_hash": str(start), "labels": counts}
    return Recording(nodes, case.recording.attrs | facts)


def cut(samples, tokens, sequences):
    fields = dict(vars(samples))
    for name, value in fields.items():
        if isinstance(value, np.ndarray) and name != "layers" and len(value) == len(tokens):
            fields[name] = value[tokens]
        elif name == "state_norm":
            fields[name] = value[list(sequences)]
    return type(samples)(**{name: fields[name] for name in samples.__dataclass_fields__})


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 17))
def test_merged_is_the_same_as_read_together(seed, first):
    case = made(seed=seed, sequences=18, length=6, layers=4, heads=2, channels=3, experts=6, top_k=2)
    together = part(case, range(18))
    merged = part(case, range(first)).merge(part(case, range(first, 18)))
    for node in together:
        xr.testing.assert_allclose(merged[node], together[node], atol=1e-5)
        assert merged[node].attrs == together[node].attrs
        assert all(merged[node][v].attrs == together[node][v].attrs for v in together[node])
    same = ("tokens", "sequences", "labels", "checkpoint_hash", "layer_types")
    assert {name: merged.attrs[name] for name in same} == {name: together.attrs[name] for name in same}


def test_cropped_tokens_add_up_unless_one_is_unknown():
    def recording(cropped):
        return Recording({}, {"labels": {"a": 9, "b": 9}, **cropped_attrs(cropped)})

    def attrs(*recordings):
        merged = merge(*recordings).attrs
        return merged["cropped_tokens"], json.loads(merged["cropped_labels"])

    one, other, unknown = recording({"a": 2, "b": 0}), recording({"b": 3}), recording(None)
    assert attrs(one, other, one) == (7, {"a": 4, "b": 3})
    assert attrs(one, unknown) == attrs(unknown, unknown) == attrs(one, Recording({}, {})) == ("unknown", {})
    assert "cropped_tokens" not in merge(Recording({}, {}), Recording({}, {})).attrs


def test_three_at_once_are_merged_in_order():
    case = made(sequences=12, length=6, layers=4)
    parts = [part(case, range(start, start + 4)) for start in (0, 4, 8)]
    xr.testing.assert_allclose(merge(*parts)["routing"], part(case, range(12))["routing"])


def test_times_add_up_and_the_clock_cost_is_the_mean_of_all_readings():
    first, second = made_recording(seed=0), made_recording(seed=1)
    second.tree["timing"].attrs.update(clock_cost_seconds=4e-7, readings=3 * first["timing"].attrs["readings"])
    merged = first.merge(second)["timing"]
    xr.testing.assert_allclose(merged["seconds"], first["timing"]["seconds"] + second["timing"]["seconds"])
    assert merged.attrs["readings"] == 4 * first["timing"].attrs["readings"]
    assert merged.attrs["clock_cost_seconds"] == pytest.approx(3.5e-7)


def test_memory_is_joined_not_added():
    first, second = made_recording(seed=0), made_recording(seed=1)
    longer = second["memory"].assign_coords(context=second["memory"]["context"] * 2)
    second = Recording({**{n: second[n] for n in second if n != "memory"}, "memory": longer}, second.attrs)
    merged = first.merge(second)["memory"]
    assert merged["context"].values.tolist() == sorted({*first["memory"]["context"].values, *longer["context"].values})
    assert merged["measured_bytes"].max() == first["memory"]["measured_bytes"].max()


def decoded(seed, **attrs):
    trace = made_trace(seed=seed, texts=5, length=30)
    return Recording({"rounds": replayed(trace, **attrs), "trace": trace}, {"checkpoint": "toy"})


def test_rounds_and_traces_are_joined_text_after_text():
    first, second = decoded(0, seconds=2.0), decoded(1, seconds=3.0)
    merged = first.merge(second)
    rounds = merged["rounds"]
    before = first["rounds"].sizes["round"]
    assert rounds["prompt"].values.tolist() == [
        *first["rounds"]["prompt"].values,
        *(5 + second["rounds"]["prompt"].values),
    ]
    for name in first["rounds"].drop_vars("prompt"):
        np.testing.assert_array_equal(rounds[name][before:], second["rounds"][name])
        assert rounds[name].dtype == first["rounds"][name].dtype
    assert rounds.attrs == {**first["rounds"].attrs, "seconds": 5.0}
    assert replayed(merged["trace"], seconds=5.0).equals(rounds)  # a trace merged replays as the rounds merged
    counts = [stats.acceptance(each)["accepted"] for each in (first, second, merged)]
    assert (counts[0] + counts[1]).equals(counts[2])
    alike = stats.agreement(merged)["chains"]
    assert (stats.agreement(first)["chains"] + stats.agreement(second)["chains"]).equals(alike)


def test_seconds_that_only_one_has_are_dropped():
    assert "seconds" not in decoded(0, seconds=2.0).merge(decoded(1))["rounds"].attrs


@pytest.mark.parametrize(("fact", "value"), [("rule", "exact_match"), ("policy", "threshold"), ("temperature", 0.7)])
def test_rounds_made_otherwise_are_not_joined(fact, value):
    with pytest.raises(CannotMerge, match=f"These recordings differ in attribute '{fact}' of node 'rounds'"):
        decoded(0).merge(decoded(1, **{fact: value}))


def test_provenance_that_differs_keeps_both():
    first, second = made_recording(), made_recording(seed=1)
    first.attrs["device"], second.attrs["device"] = "cpu", "cuda:0"
    attrs = first.merge(second).attrs
    assert attrs["device"] == "cpu; cuda:0"
    assert attrs["seed"] == "0; 1"
    assert len(attrs["prompts_hash"]) == 64


def change_hash(r):
    r.attrs["checkpoint_hash"] = "other"


def change_dtype(r):
    r.attrs["dtype"] = "bfloat16"


def change_sample(r):
    r.tree["deltanet"].attrs["sample"] = '{"heads": [0]}'


def change_label(r):
    r.tree["routing"] = r.tree["routing"].to_dataset().assign_coords(label=["code", "maths"])


def change_kind(r):
    r.tree["routing"]["kind"][0] = "full_attention"


def drop_variable(r):
    r.tree["routing"] = r.tree["routing"].to_dataset().drop_vars("shared_share_sum")


def drop_probe(r):
    del r.tree["timing"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            change_hash,
            "These recordings differ in root attribute 'checkpoint_hash': 'made of 16 experts' and 'other'",
        ),
        (change_dtype, "These recordings differ in root attribute 'dtype'"),
        (
            change_sample,
            "These recordings differ in attribute 'sample' of node 'deltanet': '{}' and '{\"heads\": \\[0\\]}'",
        ),
        (
            change_label,
            "These recordings differ in coordinate 'label' of node 'routing': "
            "\\['code', 'prose'\\] and \\['code', 'maths'\\]",
        ),
        (change_kind, "These recordings differ in coordinate 'kind' of node 'routing'"),
        (drop_variable, "These recordings differ in variables of node 'routing'"),
        (drop_probe, "These recordings differ in probes"),
    ],
)
def test_unlike_recordings_are_refused(change, message):
    other = made_recording(seed=1)
    change(other)
    with pytest.raises(CannotMerge, match=f"{message}(?s:.*)Merge only recordings of one checkpoint"):
        made_recording().merge(other)
