"""Where a recording came from."""

import json
from datetime import UTC, datetime
from importlib.metadata import version

from qwenlab import __version__
from qwenlab.record import provenance
from qwenlab.record.provenance import versions

FACTS = dict(
    checkpoint="toy-moe",
    checkpoint_hash="abc",
    family="qwen3_5_moe",
    layer_types=["linear_attention", "full_attention"],
    dtype="float32",
    device="cpu",
    kernel_delta_rule="torch_chunk_gated_delta_rule",
    attention_implementation="sdpa",
    experts_implementation="grouped_mm",
    tokens=12,
    sequences=2,
    labels={"code": 5, "prose": 7},
    prompts_hash="def",
)


def test_it_holds_facts_versions_and_the_time():
    facts = provenance(**FACTS, seed=3)
    assert facts["format"] == "1"
    assert facts["package"] == "qwenlab"
    assert facts["qwenlab"] == __version__
    assert facts["xarray"] == version("xarray")
    assert json.loads(facts["labels"]) == FACTS["labels"]
    assert json.loads(facts["layer_types"]) == FACTS["layer_types"]
    assert facts["seed"] == 3
    written = datetime.fromisoformat(facts["created"])
    assert written.tzinfo == UTC
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60
    assert {name: facts[name] for name in FACTS if isinstance(FACTS[name], int | str)} == {
        name: value for name, value in FACTS.items() if isinstance(value, int | str)
    }


def test_it_holds_numbers_and_strings_only():
    assert all(isinstance(value, str | int | float) for value in provenance(**FACTS).values())


def test_cropped_tokens_are_a_number_or_unknown_or_no_fact():
    facts = provenance(**FACTS, cropped={"code": 2, "prose": 1})
    assert (facts["cropped_tokens"], json.loads(facts["cropped_labels"])) == (3, {"code": 2, "prose": 1})
    facts = provenance(**FACTS, cropped=None)
    assert (facts["cropped_tokens"], facts["cropped_labels"]) == ("unknown", "{}")
    assert "cropped_tokens" not in provenance(**FACTS)


def test_packages_that_are_not_installed_are_left_out():
    assert versions(["xarray", "no-such-package"]) == {"xarray": version("xarray")}
