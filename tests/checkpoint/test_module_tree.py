"""Modules are listed as torch lists them."""

from torch import nn

from qwenlab.checkpoint.module_tree import modules_of
from qwenlab.testing.models import tiny_model


def test_modules_are_those_of_named_modules_in_its_order():
    model = tiny_model("qwen3_5_moe")
    model.again = model.model.layers[1]  # listed once, under the path that comes first
    model.model.layers[0].register_module("absent", None)
    model.first = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"x": nn.Identity()}))
    assert modules_of(model) == list(model.named_modules())
    inner = [(path, module) for path, module in model.named_modules() if list(module.children())]
    assert modules_of(model, leaves=False) == inner
    assert modules_of(model.lm_head) == [("", model.lm_head)]
