import json
import warnings

import pytest
from hypothesis import given, strategies as st

from qwenlab.checkpoint.anatomy.anatomy import catalogue
from qwenlab.checkpoint.config import read_config
from qwenlab.errors import BadConfig, UnknownConfigField, UnknownConfigFieldWarning, UnreadableConfig


def rooted(text: dict, **root: object) -> dict:
    """The published layout: the text stack inside a root config."""
    return {"model_type": text["model_type"].removesuffix("_text"), "text_config": text} | root


@pytest.mark.parametrize("name", catalogue())
def test_published_configs_have_no_unknown_field(name):
    read_config(catalogue()[name], strict=True)


def test_root_and_text_only_configs_read_alike(tiny_moe):
    text, root = read_config(tiny_moe, name="tiny"), read_config(rooted(tiny_moe), name="tiny")
    assert root.is_root
    assert not text.is_root
    assert {**_fields(root), "is_root": False} == _fields(text)


def test_a_folder_a_file_and_a_dict_read_alike(tiny_dense, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(rooted(tiny_dense)))
    by_folder = read_config(folder)
    assert by_folder == read_config(str(folder / "config.json")) == read_config(rooted(tiny_dense), name="tiny")
    assert by_folder.name == "tiny"


@pytest.mark.parametrize("fixture", ["tiny_dense", "tiny_moe", "tiny_next"])
def test_a_transformers_config_reads_as_its_dict_and_without_a_warning(fixture, request):
    from transformers import AutoConfig

    raw = request.getfixturevalue(fixture)
    fields = {name: value for name, value in raw.items() if name != "model_type"}
    live = AutoConfig.for_model(raw["model_type"], **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_config(live, name="tiny", strict=True) == read_config(raw, name="tiny")


@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def test_the_defaults_of_transformers_have_no_unknown_field(model_type):
    from transformers import AutoConfig

    read_config(AutoConfig.for_model(model_type), strict=True)


@given(layers=st.integers(1, 24), interval=st.none() | st.integers(1, 9))
def test_absent_layer_types_are_derived_as_transformers_does(layers, interval):
    from transformers import Qwen3_5TextConfig

    stated = {} if interval is None else {"full_attention_interval": interval}
    live = Qwen3_5TextConfig(num_hidden_layers=layers, **stated)
    raw = live.to_dict() | stated
    del raw["layer_types"]
    assert read_config(raw).layer_types == tuple(live.layer_types)


def test_listed_layer_types_win_over_the_interval(tiny_dense):
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"] * 2
    config = read_config(tiny_dense | {"layer_types": kinds, "full_attention_interval": 2})
    assert config.layer_types == tuple(kinds)


def test_qwen3_next_mixes_dense_and_sparse_layers(tiny_next):
    assert read_config(tiny_next).sparse_layers == (False, True, True, False, True, True, True, True)
    stepped = tiny_next | {"mlp_only_layers": [], "decoder_sparse_step": 2}
    assert read_config(stepped).sparse_layers == (False, True) * 4


@pytest.mark.parametrize("place", ["root", "text", "both", "nowhere"])
def test_mtp_layers_are_read_at_both_places(tiny_dense, place):
    head = {"mtp_num_hidden_layers": 1}
    text = tiny_dense | (head if place in ("text", "both") else {})
    config = read_config(rooted(text, **(head if place in ("root", "both") else {})))
    assert config.mtp_num_hidden_layers == (place != "nowhere")


def test_contradictory_mtp_layers_are_an_error(tiny_dense):
    with pytest.raises(BadConfig, match=r"mtp_num_hidden_layers of tiny and the one at the root differ: \[1, 2\]"):
        read_config(rooted(tiny_dense | {"mtp_num_hidden_layers": 1}, mtp_num_hidden_layers=2), name="tiny")


def test_a_language_model_only_config_has_no_vision_tower(tiny_dense):
    vision = json.loads(catalogue()["Qwen3.5-0.8B"].read_text())["vision_config"]
    assert read_config(rooted(tiny_dense, vision_config=vision)).vision.depth == 12
    assert read_config(rooted(tiny_dense, vision_config=vision, language_model_only=True)).vision is None


def test_dtype_is_read_under_both_names_and_defaults_to_that_of_torch(tiny_dense):
    assert read_config(tiny_dense).dtype == "float32"
    assert read_config(tiny_dense | {"torch_dtype": "float16"}).dtype == "float16"
    assert read_config(rooted(tiny_dense, dtype="bfloat16")).dtype == "bfloat16"


def test_unknown_fields_warn_and_are_an_error_when_strict(tiny_moe):
    config = rooted(tiny_moe | {"hyper_connections": 4}, vision_config={"moons": 2}, planet="Mars")
    unknown = "planet, text_config.hyper_connections, vision_config.moons"
    message = rf"tiny has config fields that qwenlab does not know for qwen3_5_moe: {unknown}\.[\s\S]*strict=False"
    with pytest.raises(UnknownConfigField, match=message):
        read_config(config, name="tiny", strict=True)
    with pytest.warns(UnknownConfigFieldWarning, match="router_z_loss"):
        read_config(tiny_moe | {"router_z_loss": 0.1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, r"hidden_size of tiny is missing; it must be an integer, 1 or more"),
        ({"hidden_size": "256"}, r"hidden_size of tiny is '256'"),
        ({"num_experts": True}, r"num_experts of tiny is True"),
        ({"layer_types": ["full_attention"]}, r"layer_types of tiny lists 1 layers, but num_hidden_layers is 8"),
        ({"layer_types": "full_attention"}, r"layer_types of tiny is 'full_attention', but num_hidden_layers is 8"),
        ({"layer_types": ["mamba"] * 8}, r"layer_types of tiny has 'mamba' at layer 0; the known kinds are linear_att"),
        ({"num_key_value_heads": 3}, r"num_attention_heads of tiny is 4, not a multiple of num_key_value_heads, 3"),
        ({"linear_num_key_heads": 3}, r"linear_num_value_heads of tiny is 8, not a multiple of linear_num_key_heads"),
        ({"num_experts_per_tok": 17}, r"num_experts_per_tok of tiny is 17, more than the 16 experts"),
        (
            {"mlp_only_layers": [0]},
            r"mlp_only_layers of tiny is \[0\], but transformers ignores it for qwen3_5_m",
        ),
        (
            {"attn_output_gate": False},
            r"attn_output_gate of tiny is False; transformers always builds qwen3_5_moe with",
        ),
        ({"mtp_use_dedicated_embeddings": True}, r"mtp_use_dedicated_embeddings of tiny is True"),
    ],
)
def test_misshapen_configs_are_errors_that_name_the_field(tiny_moe, change, message):
    with pytest.raises(BadConfig, match=message):
        read_config(tiny_moe | change, name="tiny")


def test_an_error_has_the_full_name_of_a_nested_field(tiny_moe):
    with pytest.raises(BadConfig, match=r"text_config\.vocab_size of tiny is -1"):
        read_config(rooted(tiny_moe | {"vocab_size": -1}), name="tiny")


def test_a_root_config_without_its_text_stack_is_an_error(tiny_moe):
    with pytest.raises(BadConfig, match="model_type 'qwen3_5_moe' but no text_config"):
        read_config(tiny_moe | {"model_type": "qwen3_5_moe"})
    with pytest.raises(BadConfig, match="text_config of tiny is 3"):
        read_config({"model_type": "qwen3_5", "text_config": 3}, name="tiny")


def test_unreadable_configs_are_errors(tmp_path):
    with pytest.raises(UnreadableConfig, match=r"There is no config\.json in [\s\S]*folder of a checkpoint"):
        read_config(tmp_path)
    with pytest.raises(UnreadableConfig, match=r"There is no nothing\.json"):
        read_config(tmp_path / "nothing.json")
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UnreadableConfig, match=r"is not JSON: [\s\S]*truncated"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnreadableConfig, match="contains a list, not an object"):
        read_config(tmp_path)
    with pytest.raises(UnreadableConfig, match="A int is not a config"):
        read_config(3)


def _fields(config) -> dict:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
