import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

import qwenlab
from qwenlab.checkpoint.anatomy.anatomy import Anatomy, anatomy, catalogue
from qwenlab.checkpoint.families import KINDS
from qwenlab.errors import BadArgument, UnknownCheckpoint, UnknownConfigField, UnreadableConfig

PUBLISHED = json.loads((Path(__file__).parents[2] / "golden" / "published.json").read_text())
MIB = 2**20


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    found, published = anatomy(name), PUBLISHED[name]
    outside = ("lm_head", "vision", "mtp")
    assert {part: found.parameters[part] for part in outside} == {part: published[part] for part in outside}
    assert sum(size for part, size in found.parameters.items() if part not in outside) == published["text"]
    assert found.total == published["total"]


def test_active_parameters_are_those_published():
    moe = anatomy("Qwen3.6-35B-A3B")
    assert moe.active == 2_946_429_568
    assert moe.active_with_embedding == 3_454_988_928


def test_a_tied_embedding_stays_active_as_the_head():
    tied = anatomy("Qwen3.5-0.8B")
    assert tied.active == tied.active_with_embedding == 752_393_024


def test_a_dense_model_is_active_throughout():
    dense = anatomy("Qwen3.6-27B")
    assert dense.active_with_embedding == 25_624_600_064 + 1_271_398_400


@pytest.mark.parametrize(
    ("name", "layers", "kv", "mtp_kv", "recurrent", "convolution"),
    [
        ("Qwen3.6-27B", (48, 16), 65_536, 4_096, 144 * MIB, 3.75 * MIB),
        ("Qwen3.6-35B-A3B", (30, 10), 20_480, 2_048, 60 * MIB, 1.875 * MIB),
    ],
)
def test_memory_is_that_published(name, layers, kv, mtp_kv, recurrent, convolution):
    found = anatomy(name)
    assert tuple(len(found.layers(kind)) for kind in KINDS) == layers
    assert found.kv_bytes(1) == kv
    assert found.mtp_kv_bytes(1) == mtp_kv
    assert found.recurrent_bytes() == recurrent
    assert found.convolution_bytes() == convolution
    assert found.state_bytes() == recurrent + convolution


def test_an_fp8_checkpoint_differs_only_in_how_it_is_stored():
    for name in ("Qwen3.6-27B", "Qwen3.6-35B-A3B"):
        plain, stored = anatomy(name), anatomy(f"{name}-FP8")
        assert stored.parameters == plain.parameters
        assert stored.kv_bytes(100) == plain.kv_bytes(100)
        assert stored.weight_bytes() < 0.6 * plain.weight_bytes()


@given(context=st.integers(1, 10**6), batch=st.integers(1, 64))
def test_caches_grow_with_context_and_batch_and_states_with_batch_alone(context, batch):
    found = anatomy("Qwen3.5-0.8B")
    assert found.kv_bytes(context, batch) == context * batch * found.kv_bytes(1)
    assert found.state_bytes(batch) == batch * found.state_bytes()
    assert found.kv_bytes(context, batch, "float32") == 2 * found.kv_bytes(context, batch)


def test_every_source_of_one_config_gives_one_anatomy(tmp_path, tiny_moe):
    known = anatomy("Qwen3.6-27B")
    file = catalogue()["Qwen3.6-27B"]
    folder = tmp_path / "Qwen3.6-27B"
    folder.mkdir()
    (folder / "config.json").write_text(file.read_text())
    sources = ["Qwen/Qwen3.6-27B", file, str(folder), folder, folder / "config.json", SimpleNamespace(anatomy=known)]
    assert all(anatomy(source) == known for source in sources)
    unnamed = anatomy(json.loads(file.read_text()))
    assert dataclasses.replace(unnamed.config, name="Qwen3.6-27B") == known.config


def test_a_model_is_known_by_its_config_and_its_own_dtype(tiny_moe):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in tiny_moe.items() if name != "model_type"}
    config = AutoConfig.for_model(tiny_moe["model_type"], **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    found = anatomy(model)
    assert found.config.dtype == "float16"
    assert found.parameters == anatomy(config).parameters == anatomy(tiny_moe).parameters
    assert found.total == model.num_parameters()


def test_a_folder_wins_over_the_catalog(tmp_path, tiny_dense, monkeypatch):
    (tmp_path / "Qwen3.6-27B").mkdir()
    (tmp_path / "Qwen3.6-27B" / "config.json").write_text(json.dumps(tiny_dense))
    monkeypatch.chdir(tmp_path)
    assert anatomy("Qwen3.6-27B").config.hidden_size == 256


def test_an_unknown_name_is_an_error_with_the_nearest_names_and_the_list():
    with pytest.raises(UnknownCheckpoint) as error:
        anatomy("Qwen3.6-27b")
    assert "'Qwen3.6-27b' is neither a folder with a config.json nor a name in the catalog" in str(error.value)
    assert "Did you mean Qwen3.6-27B or " in str(error.value)
    assert all(name in str(error.value) for name in catalogue())
    with pytest.raises(UnknownCheckpoint) as error:
        anatomy("zebra")
    assert "Did you mean" not in str(error.value)


def test_a_path_without_a_config_is_an_error(tmp_path):
    with pytest.raises(UnreadableConfig, match=r"There is no config\.json"):
        anatomy(tmp_path)


def test_strict_reading_reaches_the_config(tiny_dense):
    with pytest.raises(UnknownConfigField):
        anatomy(tiny_dense | {"zebra": 1}, strict=True)


def test_the_table_holds_every_parameter_of_the_layers(tiny_next):
    found = anatomy(tiny_next)
    table = found.table()
    assert list(table.index) == list(range(8))
    assert tuple(table["kind"]) == found.layer_types
    parts = table.drop(columns=["kind", "total", "active"])
    assert (parts.sum(axis=1) == table["total"]).all()
    for part in ("linear_attention", "full_attention", "router", "experts", "shared_expert", "mlp"):
        assert table[part].sum() == found.parameters[part]
    assert table["norms"].sum() + 256 == found.parameters["norms"]  # the last norm lies outside the layers
    outside = ("embedding", "lm_head")
    assert table["active"].sum() + 256 == found.active_with_embedding - sum(found.parameters[p] for p in outside)


def test_memory_is_labelled():
    contexts = [1024, 4096]
    memory = anatomy("Qwen3.6-35B-A3B").memory(contexts, batch=2)
    assert memory["context"].attrs["units"] == "token"
    assert all(memory[store].attrs["units"] == "B" for store in memory)
    assert memory["kv"].sel(context=4096) == 2 * 4096 * 20_480
    assert (memory["recurrent_state"] == 2 * 60 * MIB).all()
    assert memory.attrs == {"checkpoint": "Qwen3.6-35B-A3B", "batch": 2, "dtype": "bfloat16"}


def test_cost_is_labelled_and_equals_flops_and_bytes_moved():
    moe = anatomy("Qwen3.6-35B-A3B")
    cost = moe.cost([64, 1000], batch=2)
    assert cost["flops"].dims == cost["bytes"].dims == ("phase", "context", "part")
    assert cost["flops"].attrs["units"] == "FLOP/token"
    assert cost["bytes"].attrs["units"] == "B/token"
    for phase in ("prefill", "decode"):
        whole = cost.sel(phase=phase, context=1000).sum("part")
        call = {"context": 1000, "batch": 2}
        tokens = 2000 if phase == "prefill" else 2
        np.testing.assert_allclose(whole["flops"], moe.flops(phase, **call).total / tokens)
        np.testing.assert_allclose(whole["bytes"], moe.bytes_moved(phase, **call).total / tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.flops("train", context=1), r"anatomy\(phase='train'\): give one of 'prefill', 'decode'\."),
        (lambda a: a.flops(context=1, rule="fast"), r"flops\(rule='fast'\): give one of 'chunk', 'recurrent'\."),
        (lambda a: a.flops(context=1, logits="some"), r"flops\(logits='some'\): give one of 'all', 'last'\."),
        (lambda a: a.layers("mamba"), r"layers\(kind='mamba'\): give one of 'linear_attention', 'full_attention'\."),
        (lambda a: a.kv_bytes(0), r"context=0: give a number that is at least 1"),
        (lambda a: a.bytes_moved("decode", context=8, batch=0), r"batch=0: give a number that is at least 1"),
        (lambda a: a.memory([8], dtype="int3"), r"dtype 'int3' is unknown"),
    ],
)
def test_invalid_arguments_are_errors(call, message):
    with pytest.raises(BadArgument, match=message):
        call(anatomy("Qwen3.5-0.8B"))


def test_it_is_the_public_function():
    assert qwenlab.anatomy is anatomy
    assert qwenlab.checkpoint.Anatomy is Anatomy


def test_it_needs_neither_torch_nor_transformers():
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "import qwenlab; a = qwenlab.anatomy('Qwen3.6-35B-A3B')\n"
        "print(a); a._repr_html_(); a.table(); a.cost([64]); a.memory([64])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
