"""Watch a model of fake tensors on a device that is not the host: `python -m tests.probes.without_host [control]`.

A value that the host reads, and a tensor that moves from or to it, is an error here. With `control`, a probe does so.
"""

import os
import sys
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers.cache_utils import DynamicCache

import qwenlab as ql
from qwenlab.probes import Probe
from qwenlab.testing import tiny_model

DEVICE = "elsewhere"
OPTIONS = dict(dtype=torch.bfloat16, device=DEVICE)
CONTROLS = {
    "item": lambda value: value.sum().item(),
    "bool": lambda value: bool((value > 0).any()),
    "tolist": lambda value: value.flatten().tolist(),
    "cpu": lambda value: value.cpu(),
    "list": lambda value: value[..., :2] * torch.tensor([1.0, 2.0], device=value.device),
}


class NoTransfers(TorchDispatchMode):
    """Raises where a tensor moves between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if function in (aten._to_copy.default, aten.copy_.default):
            source = args[-1].device if function is aten.copy_.default else args[0].device
            target = args[0].device if function is aten.copy_.default else torch.device(kwargs.get("device") or source)
            if source.type != target.type:
                raise AssertionError(f"a tensor moves from {source.type} to {target.type}")
        return function(*args, **kwargs)


class Control(Probe):
    """Reads a value on the host, in one of several ways."""

    name = "control"

    def __init__(self, how):
        super().__init__()
        self.how = how

    def sites(self, layer):
        return ("mixer",)

    def reduce(self, layer, part, captured, tokens):
        CONTROLS[self.how](captured["mixer"])

    def dataset(self, labels):
        return self.build_dataset(labels, {})


def on_the_device(family):
    """A tiny model whose parameters and buffers are fake ones of the device."""
    model = tiny_model(family)
    for module in model.modules():
        for name, value in module._parameters.items():
            module._parameters[name] = (
                value if value is None else torch.nn.Parameter(torch.empty(value.shape, **OPTIONS))
            )
        for name, value in module._buffers.items():
            module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
    return model


def started(config):
    """An empty cache; transformers would make its first tensors from lists."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        if hasattr(layer, "keys"):
            layer.dtype, layer.device, layer.is_initialized = torch.bfloat16, torch.device(DEVICE), True
            layer.keys, layer.values = torch.empty(0, **OPTIONS), torch.empty(0, **OPTIONS)
    return cache


def ones(*shape):
    return torch.ones(shape, dtype=torch.long, device=DEVICE)


def read(model, label=lambda name: nullcontext()):
    """A prefill and 70 decode steps, more than are reduced together; batches with a mask, also decoded; a crop;
    labels that change; a training step."""
    with torch.no_grad():
        cache = started(model.config)
        model(ones(1, 130), past_key_values=cache, use_cache=True)
        for _ in range(70):
            model(ones(1, 1), past_key_values=cache, use_cache=True)
        model(ones(3, 16), attention_mask=ones(3, 16), use_cache=False)
        cache = started(model.config)
        for columns, name in [(9, "a"), (10, "b"), (11, "b"), (12, "c")]:
            new = columns - cache.get_seq_length()
            with label(name):
                model(ones(2, new), attention_mask=ones(2, columns), past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            if hasattr(layer, "keys"):
                layer.crop(-2)
        with label("a"):
            for _ in range(3):
                model(ones(2, 1), past_key_values=cache, use_cache=True)
    model(ones(2, 9), use_cache=False).logits.float().sum().backward()


def main(control=None):
    _setup_privateuseone_for_python_backend(DEVICE)
    with FakeTensorMode():
        for family in ("qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid"):
            model = on_the_device(family)
            read(model)
            watched = ql.watch(model, Control(control)) if control else ql.watch(model, *ql.probes.defaults(model))
            seen = watched.__enter__()  # the end of a block, and its recording, do read values
            with NoTransfers():
                read(model, seen.label)
    print("nothing was read on the host", flush=True)
    os._exit(0)  # the fake device has no tear-down


if __name__ == "__main__":
    main(*sys.argv[1:])
