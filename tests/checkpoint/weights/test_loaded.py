"""Functions that run a model reject one that lacks weights or scales."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import qwenlab as ql
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import HalfLoadedModel
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.models import tiny_model

KINDS = ["linear_attention", "full_attention"]
CONVOLUTION = "model.layers.0.linear_attn.conv1d.weight"


def on_meta(model, path):
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, name, nn.Parameter(getattr(module, name).to("meta")))
    return model


@pytest.fixture
def model():
    return tiny_model("qwen3_5_moe", layer_types=KINDS)


@pytest.fixture
def checkpoint(tmp_path):
    return ql.open(tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS))


@pytest.mark.parametrize(
    "path", [CONVOLUTION, "lm_head.weight", "model.layers.0.linear_attn.A_log", "model.layers.1.mlp.experts.down_proj"]
)
@pytest.mark.parametrize(
    "block",
    [
        lambda model: ql.watch(model, ql.probes.DeltaNet()),
        lambda model: ql.intervene(model, ql.interventions.NoConv()),
        lambda model: ql.interventions.cache_activations(model, "layers.0.mixer"),
    ],
    ids=["watch", "edit", "take"],
)
def test_a_weight_on_the_meta_device(model, path, block):
    on_meta(model, path)
    message = rf"has 1 weights on the meta device[\s\S]*\n  {path}\nLoad the model again"
    with pytest.raises(HalfLoadedModel, match=message), block(model):
        pass


ENTRIES = {
    "sweep": lambda ckpt: ql.ablations.sweep(
        ckpt, ql.ablations.units(ckpt), [ql.tasks.text_task(ckpt, ["a text"], name="x")]
    ),
    "measure": lambda ckpt: ql.tasks.measure(ckpt, [ql.tasks.Task("mine", ((1, 2),), ((1,),))]),
    "feed": lambda ckpt: ql.tasks.feed(ckpt, ["a text"]),
    "generate": lambda ckpt: ql.speculative.generate(ckpt, ["a text"], depth=1),
    "trace": lambda ckpt: ql.speculative.trace(ckpt, ["a text"], depth=1),
    "check_lossless": lambda ckpt: ql.speculative.check_lossless(ckpt, ["a text"], depth=1),
    "audit": lambda ckpt: ql.speculative.audit(ckpt, ["a text of some tokens"]),
    "custom_generate": lambda ckpt: ckpt.model.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=3, custom_generate=ql.speculative.CustomGenerate(ckpt, depth=1)
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_point_checks(checkpoint, name):
    on_meta(checkpoint.model, CONVOLUTION)
    with pytest.raises(HalfLoadedModel, match=CONVOLUTION):
        ENTRIES[name](checkpoint)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_weights_that_accelerate_loads_are_accepted(model, offload, tmp_path):
    ids = torch.tensor([[1, 2, 3, 4]])
    wanted = model(ids).logits
    offload(model, *([tmp_path] if offload is disk_offload else []))
    with torch.no_grad(), ql.watch(model, ql.probes.DeltaNet()):
        found = model(ids).logits
    torch.testing.assert_close(found, wanted)
    # A weight without a hook is found among those that hooks load.
    model.model.layers[0].linear_attn.stray = nn.Linear(2, 2, device="meta")
    with pytest.raises(HalfLoadedModel, match=r"2 weights on the meta device[\s\S]*stray\.weight"):
        require_loaded(model)


def test_offloaded_parts_with_one_hook_for_all_below(model):
    cpu_offload(model, preload_module_classes=["Qwen3_5MoeSparseMoeBlock"])
    require_loaded(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quant_method": "modelopt"},  # transformers skips it and only logs that
            "has the quantisation 'modelopt', but transformers loaded the weights without it",
        ),
        (None, r"\d+ matrices whose median magnitude is above 8, like FP8 codes"),  # the config lacks its entry
    ],
)
def test_fp8_that_from_pretrained_reads_as_plain_weights(tmp_path, change, message):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS, fp8=True, shards=1)
    config = json.loads((folder / "config.json").read_text())
    own = config.pop("quantization_config")
    config |= {} if change is None else {"quantization_config": own | change}
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(HalfLoadedModel, match=message), ql.watch(model, ql.probes.DeltaNet()):
        pass


def test_fp8_that_transformers_scaled_is_whole(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS, fp8=True, shards=1)
    require_loaded(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_codes_without_scales(model, dtype):
    linear = model.model.layers[1].self_attn.o_proj
    linear.weight = nn.Parameter(linear.weight.detach().mul(100).to(dtype), requires_grad=False)
    message = r"1 weights that are codes without scales:\n  model\.layers\.1\.self_attn\.o_proj\.weight \("
    with pytest.raises(HalfLoadedModel, match=message):
        require_loaded(model)
    linear.weight_scale_inv = nn.Parameter(torch.ones(1))
    require_loaded(model)


def test_layers_of_other_packages_scale_by_themselves(model):
    """As in bitsandbytes and HQQ, which store their scales elsewhere."""

    class Linear8bit(nn.Linear):
        __module__ = "bitsandbytes.nn.modules"

    linear = model.model.layers[1].self_attn.o_proj
    other = Linear8bit(linear.in_features, linear.out_features, bias=False)
    other.weight = nn.Parameter(torch.ones_like(linear.weight, dtype=torch.int8), requires_grad=False)
    model.model.layers[1].self_attn.o_proj = other
    model.model.layers[1].self_attn.pattern = nn.Parameter(torch.eye(3).bool(), requires_grad=False)
    require_loaded(model)


def test_a_part_of_a_model_whose_quantizer_is_outside(model):
    """`hf_quantizer` is an attribute of the outermost model; in its text stack, the layers show that it was used."""
    stack = model.model
    stack.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(HalfLoadedModel, match="has the quantisation 'fp8'"):
        require_loaded(stack)
    stack.layers[0].linear_attn.out_proj.weight_scale_inv = nn.Parameter(torch.ones(1))
    require_loaded(stack)
    del stack.layers[0].linear_attn.out_proj.weight_scale_inv
    model.hf_quantizer = SimpleNamespace()
    require_loaded(model)
    del stack.config.quantization_config


def test_open_checks_the_loaded_values(tmp_path):
    """Files with codes stored as bfloat16: the headers look correct, only the size of the values is wrong."""
    folder = tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS, shards=1)
    tensors = load_file(folder / "model.safetensors")
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name] / tensors[name].abs().amax() * 448
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HalfLoadedModel, match=r"1 matrices whose median magnitude"):
        ql.open(folder)
