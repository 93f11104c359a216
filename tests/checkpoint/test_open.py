"""Opening a checkpoint: every layout gives the same model, and every defect its own message."""

import json
import shutil
import warnings

import pytest
import torch

import qwenlab as ql
from qwenlab.checkpoint.source import toys
from qwenlab.checkpoint.weights.shards import read_weights
from qwenlab.checkpoint.weights.target_model import load_target
from qwenlab.errors import (
    BadArgument,
    BrokenWeights,
    NoMtpHead,
    NonFiniteWeights,
    NotAHybrid,
    TokenizerMismatch,
    UnknownConfigField,
    UnknownConfigFieldWarning,
    UnreadableConfig,
    UnsupportedFamily,
    UnusedWeights,
    UnusedWeightsWarning,
)
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.models import tiny_head, tiny_model
from tests.checkpoint.changing import change_tensors

KINDS = ["linear_attention", "full_attention"]
TOKENS = torch.randint(0, 270, (2, 9), generator=torch.Generator().manual_seed(0))

LAYOUTS = [
    ("qwen3_5", {}),
    ("qwen3_5", {"layout": "text", "shards": 1}),
    ("qwen3_5", {"layout": "flat", "tie_word_embeddings": True}),
    ("qwen3_5_moe", {}),
    ("qwen3_5_moe", {"experts": "each", "shards": 3}),
    ("qwen3_5_moe", {"layout": "flat", "mtp": "each"}),
    ("qwen3_next", {"layout": "flat", "experts": "each", "mtp": "each"}),
    ("qwen3_next", {"layout": "flat", "mlp_only_layers": [1]}),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A correct checkpoint of one shard; tests change a copy."""
    return tiny_checkpoint(tmp_path_factory.mktemp("whole") / "tiny", layer_types=KINDS, shards=1)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "tiny")


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits


# --- results ---


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_every_layout_is_the_model_that_was_written(tmp_path, family, layout):
    folder = tiny_checkpoint(tmp_path, family, layer_types=KINDS, **layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ckpt = ql.open(folder, strict=True)
    sizes = {name: layout[name] for name in ("tie_word_embeddings", "mlp_only_layers") if name in layout}
    written = tiny_model(family, layer_types=KINDS, **sizes)
    torch.testing.assert_close(ckpt.model.state_dict(), written.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(ckpt.mtp.state_dict(), tiny_head(written).state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(logits(ckpt.model), logits(written), atol=1e-5, rtol=0)
    counted = sum(p.numel() for module in (ckpt.model, ckpt.mtp) for p in module.parameters())
    assert ckpt.facts.parameters == ckpt.anatomy.total == counted
    assert ckpt.facts.family == family


def test_a_checkpoint(whole):
    ckpt = ql.open(whole)
    assert type(ckpt.model).__name__ == "Qwen3_5MoeForCausalLM"
    assert not ckpt.model.training
    assert ckpt.anatomy.layer_types == tuple(KINDS)
    assert ckpt.require_mtp() is ckpt.mtp
    text = "The state, then: 12 keys\n  and wörds."
    assert ckpt.tokenizer.decode(ckpt.tokenizer(text).input_ids) == text
    facts = ckpt.facts
    assert (facts.source, facts.folder, facts.revision) == (str(whole), str(whole), None)
    assert (facts.dtype, facts.device, facts.torch) == ("float32", "cpu", torch.__version__)
    assert facts.hash.startswith("sha256:")


@pytest.mark.parametrize("name", sorted(toys()))
def test_a_shipped_toy_opens_by_its_name_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ckpt = ql.open(name, strict=True)
    assert (ckpt.facts.source, ckpt.anatomy.name) == (name, name)
    assert ckpt.require_mtp().target_model is ckpt.model


def test_the_model_generates(whole):
    ckpt = ql.open(whole)
    inputs = ckpt.tokenizer("the state", return_tensors="pt")
    longer = ckpt.model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert longer.shape[1] == inputs.input_ids.shape[1] + 3


def test_a_copy_saved_by_transformers_opens_without_its_head(whole, tmp_path):
    ckpt = ql.open(whole)
    ckpt.model.save_pretrained(tmp_path)
    ckpt.tokenizer.save_pretrained(tmp_path)
    copy = ql.open(tmp_path)
    torch.testing.assert_close(copy.model.state_dict(), ckpt.model.state_dict(), atol=0, rtol=0)
    assert copy.mtp is None
    assert copy.anatomy.parameters["mtp"] == 0
    with pytest.raises(NoMtpHead) as caught:
        copy.require_mtp()
    assert str(caught.value) == (
        f"{tmp_path} has no MTP head: no tensor name in its shards starts with mtp.\n"
        "Open the published checkpoint: a copy that transformers saved does not contain the head."
    )


def test_the_dtype_is_the_checkpoints_own_or_the_requested_one(tmp_path):
    folder = tiny_checkpoint(tmp_path, layer_types=KINDS, dtype="bfloat16", float32_decay=True)
    for requested, dtype in ((None, torch.bfloat16), ("float32", torch.float32), (torch.float64, torch.float64)):
        ckpt = ql.open(folder, dtype=requested)
        assert {p.dtype for module in (ckpt.model, ckpt.mtp) for p in module.parameters()} == {dtype}
        assert ckpt.facts.dtype == ckpt.anatomy.config.dtype == str(dtype).removeprefix("torch.")


def test_fp8_opens_as_plain_weights_where_it_cannot_run(tmp_path):
    layout = {"experts": "each", "mtp": "each", "dtype": "bfloat16"}
    ckpt = ql.open(tiny_checkpoint(tmp_path, layer_types=KINDS, fp8=True, **layout))
    written = tiny_model(layer_types=KINDS)
    for name, weight in ckpt.model.named_parameters():
        error = (weight.float() - written.get_parameter(name)).norm() / written.get_parameter(name).norm()
        assert error < 0.04, name
    assert ckpt.anatomy.config.quantization is None


def test_devices_and_implementations_reach_transformers(whole):
    ckpt = ql.open(whole, device="cpu", attn_implementation="eager", experts_implementation="eager")
    assert ckpt.model.config._attn_implementation == ckpt.mtp.config._attn_implementation == "eager"
    assert ckpt.model.config._experts_implementation == "eager"
    assert ql.open(whole, device_map={"": "cpu"}).facts.device == "cpu"


TAKERS = {
    "mqar": lambda model: ql.tasks.mqar(model, pairs=2),
    "feed": lambda model: ql.tasks.feed(model, ["a text"]),
    "text_task": lambda model: ql.tasks.text_task(model, ["a text"], name="mine"),
    "passages": lambda model: ql.tasks.passages(model, "a text"),
    "measure": lambda model: ql.tasks.measure(model, [ql.tasks.Task("mine", ((1, 2),), ((1,),))]),
    "sweep": lambda model: ql.ablations.sweep(model, ql.ablations.units(model), []),
    "acceptance": lambda model: ql.ablations.acceptance(model, ql.ablations.units(model), ["a text"]),
    "patching": lambda model: ql.ablations.patching(model, ["a"], ["b"], [1]),
    "generate": lambda model: ql.speculative.generate(model, ["a"], depth=1),
    "trace": lambda model: ql.speculative.trace(model, ["a"], depth=1),
    "check_lossless": lambda model: ql.speculative.check_lossless(model, ["a"], depth=1),
    "audit": lambda model: ql.speculative.audit(model, ["a"]),
    "step_times": lambda model: ql.speculative.step_times(model, "a", depth=1),
}


@pytest.mark.parametrize("name", TAKERS)
def test_a_model_is_not_a_checkpoint(whole, name):
    message = (
        r"Expected a Checkpoint, .* got a Qwen3_5MoeForCausalLM\.\nPass the Checkpoint .* returned, not its \.model"
    )
    with pytest.raises(BadArgument, match=message):
        TAKERS[name](ql.open(whole).model)


def test_code_in_the_folder_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoTokenizer": ["modeling_evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.warns(UnknownConfigFieldWarning, match="auto_map"):
        ql.open(folder)
    assert not (folder / "ran").exists()


def test_the_hash_follows_the_weights_in_memory(whole):
    ckpt = ql.open(whole)
    assert ckpt.hash_now() == ckpt.facts.hash
    ckpt.model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    torch.optim.SGD(ckpt.model.parameters(), lr=0.1).step()
    trained = ckpt.hash_now()
    assert trained.startswith("sampled-sha256:")
    assert (trained, ckpt.facts.hash) == (ckpt.hash_now(), ql.open(whole).hash_now())
    with ql.watch(ckpt, ql.probes.Residual()) as seen:
        ckpt.model(torch.tensor([[1, 2, 3]]))
    assert seen.recording().attrs["checkpoint_hash"] == trained


# --- display ---


def test_in_one_line(whole):
    ckpt = ql.open(whole)
    count = f"{ckpt.facts.parameters:,} parameters"
    assert repr(ckpt) == f"Checkpoint('{whole}': qwen3_5_moe, 2 layers, {count}, float32 on cpu, with MTP head)"


def test_as_text_and_html_it_is_its_anatomy_and_where_it_came_from(folder):
    folder = folder.rename(folder.parent / "a<b>&c")
    ckpt = ql.open(folder)
    assert str(ckpt).startswith(str(ckpt.anatomy))
    assert str(ckpt).splitlines()[-1] == f"{folder} · float32 on cpu · sha256 {ckpt.facts.hash[7:19]}"
    assert ckpt._repr_html_().startswith(ckpt.anatomy._repr_html_())
    assert "a&lt;b&gt;&amp;c · float32 on cpu" in ckpt._repr_html_()
    assert "<b>&c" not in ckpt._repr_html_()


# --- errors ---


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(UnreadableConfig, match=rf"There is no config.json in {tmp_path}"):
        ql.open(tmp_path)


def test_a_model_without_deltanet_layers(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    with pytest.raises(NotAHybrid, match="llama"):
        ql.open(folder)


def test_a_hybrid_of_another_family(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "kimi_linear"}))
    with pytest.raises(UnsupportedFamily, match=r"(?s)kimi_linear.*qwen3_5, qwen3_5_moe, qwen3_next"):
        ql.open(folder)


def test_an_unknown_field_warns_and_is_an_error_when_strict(folder):
    change_config(folder, sliding_gate=3)
    with pytest.warns(UnknownConfigFieldWarning, match="sliding_gate"):
        ql.open(folder)
    with pytest.raises(UnknownConfigField, match="sliding_gate"):
        ql.open(folder, strict=True)


def test_a_missing_tensor(folder):
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(BrokenWeights) as caught:
        ql.open(folder)
    assert str(caught.value) == (
        f"The shards in {folder} do not match the config.json:\n"
        f"  {name} [256, 64] is missing\n"
        "Download config.json and the shards again, from the same revision."
    )


def test_a_misshapen_tensor(folder):
    change_config(folder, num_experts=4)
    with pytest.raises(
        BrokenWeights, match=r"layers.0.mlp.experts.down_proj is \[8, 64, 16\], should be \[4, 64, 16\]"
    ):
        ql.open(folder)


def test_a_missing_expert(tmp_path):
    folder = tiny_checkpoint(tmp_path, layer_types=KINDS, experts="each", shards=1)
    name = "model.language_model.layers.0.mlp.experts.7.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(BrokenWeights, match=rf"{name} \[64, 16\] is missing"):
        ql.open(folder)


def test_weights_that_transformers_would_draw_at_random(folder):
    """The last check, for names that the headers do not decide."""
    change_tensors(folder, lambda tensors: tensors.pop("model.language_model.norm.weight"))
    with pytest.raises(BrokenWeights, match=rf"found no weights in {folder} for\n  model.norm.weight\nand drew"):
        load_target(read_weights(folder), quantised=False)


def test_unused_tensors_warn_and_are_an_error_when_strict(folder):
    change_tensors(folder, lambda tensors: tensors.update({"adapter.weight": torch.zeros(1)}))
    with pytest.warns(UnusedWeightsWarning, match=r"no part of the model uses:\n  adapter.weight\nThe model"):
        ql.open(folder)
    with pytest.raises(UnusedWeights, match=r"adapter.weight\nUse strict=False"):
        ql.open(folder, strict=True)


def test_vision_weights_are_ignored_without_a_warning(folder):
    change_tensors(folder, lambda tensors: tensors.update({"model.visual.pos_embed.weight": torch.zeros(2, 2)}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ql.open(folder, strict=True)


def test_a_nan_is_found_in_small_checkpoints_and_in_large_ones_when_strict(folder, monkeypatch):
    name = "model.language_model.layers.0.linear_attn.A_log"
    change_tensors(folder, lambda tensors: tensors[name].fill_(torch.nan))
    with pytest.raises(NonFiniteWeights, match=f"{name} in model.safetensors: 4 of 4 values"):
        ql.open(folder)
    monkeypatch.setattr("qwenlab.checkpoint.open.SMALL", 0)
    ql.open(folder)
    with pytest.raises(NonFiniteWeights, match=name):
        ql.open(folder, strict=True)


def test_a_folder_without_a_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerMismatch, match=r"no tokenizer: neither tokenizer.json nor vocab.json with merges.txt"):
        ql.open(folder)


def test_a_tokenizer_with_more_tokens_than_rows(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS, vocab_size=270)
    with pytest.raises(TokenizerMismatch) as caught:
        ql.open(folder)
    message = str(caught.value)
    problem = "does not match the model: 2 of its 272 tokens have ids beyond the 270 rows"
    assert f"The tokenizer in {folder} {problem}" in message
    assert "id 270.\nUse the tokenizer that the model was trained with." in message


def test_one_id_beyond_the_rows_is_enough(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["the"] = 1000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = r"1 of its .* have ids beyond the 288 rows .*; the first is 'the', id 1,000"
    with pytest.raises(TokenizerMismatch, match=message):
        ql.open(folder)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"device": "cpu", "device_map": "auto"}, "Got both device and device_map.\nUse device"),
    ({"dtype": "bf16"}, "dtype='bf16' is not a dtype of torch.\nUse 'bfloat16'"),
    ({"dtype": "nn"}, "dtype='nn' is not a dtype of torch"),
    ({"revision": "v2"}, "revision='v2' works only for hub checkpoints"),
])  # fmt: skip
def test_invalid_arguments(whole, arguments, message):
    with pytest.raises(BadArgument, match=message):
        ql.open(whole, **arguments)


def test_an_unknown_keyword(whole):
    with pytest.raises(TypeError, match="trust_remote_code"):
        ql.open(whole, trust_remote_code=True)


def test_draws_nothing_from_the_users_random_numbers():
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    ql.open("toy-dense")
    assert torch.equal(torch.rand(3), undisturbed)
