"""Build a causal language model whose weights stay in their files, within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from threading import Event
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.streaming.budget import Budget
from qwenlab.checkpoint.streaming.file_tensor import FileTensor
from qwenlab.checkpoint.streaming.refusals import PassCheck, refuse_generate
from qwenlab.checkpoint.streaming.stored_parameters import file_tensors
from qwenlab.checkpoint.streaming.stream import WeightStream, set_stream
from qwenlab.checkpoint.streaming.unit import Unit
from qwenlab.checkpoint.streaming.vocabulary import EmbeddingRows, SlicedHead
from qwenlab.checkpoint.weights.in_files import mark
from qwenlab.checkpoint.weights.shards import Weights
from qwenlab.checkpoint.weights.target_model import as_dtype
from qwenlab.errors import CannotStream


def load_streamed(
    weights: Weights,
    config: TextConfig,
    memory: int,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    **implementations: str | None,
) -> PreTrainedModel:
    """Build the model in eval mode; its matrices are views of the mapped files, present while their layer runs.

    memory  bytes that weights may take

    Vectors and convolution kernels are copied, since they are small and read everywhere. A matrix that is stored in
    another dtype than the model's, or in parts, is NaN unless its layer runs.

    Raises CannotStream for a quantised checkpoint and for a device other than the CPU, and MemoryTooSmall.
    """
    _require_streamable(weights, config, device, device_map)
    model = _empty(weights, as_dtype(dtype), {k: v for k, v in implementations.items() if v is not None})
    placed = file_tensors(model, weights, config)
    decoder = decoder_of(model)
    budget = Budget.of(memory, weights, config, decoder, placed)
    for name, tensor in placed.items():
        owner, _, last = name.rpartition(".")
        parameter = nn.Parameter(_initial(tensor), requires_grad=False)
        model.get_submodule(owner)._parameters[last] = parameter
        if tensor.is_matrix:
            mark(parameter, tensor.where)
    model.tie_weights()
    _stream(model, decoder, placed, budget)
    return model.eval()


def _require_streamable(
    weights: Weights, config: TextConfig, device: str | torch.device | None, device_map: Any
) -> None:
    if device_map is not None or torch.device(device or "cpu").type != "cpu":
        asked = "device_map" if device_map is not None else f"device={str(device)!r}"
        raise CannotStream(
            f"memory=... streams layers to the CPU only; got {asked}.\nLeave {asked.partition('=')[0]} out; or leave "
            "memory out and use device_map='auto', which offloads the layers that do not fit."
        )
    if config.quantization is not None:
        raise CannotStream(
            f"{weights.folder} has weights in {config.quantization}, which memory=... does not convert.\n"
            "Open the release in 16 bit, or leave memory out."
        )


def _empty(weights: Weights, dtype: str | torch.dtype, implementations: dict[str, str]) -> PreTrainedModel:
    """The model with parameters on the meta device, and the configs that `from_pretrained` gives it."""
    local: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
    config = AutoConfig.from_pretrained(weights.folder, **local)
    stored = config.get_text_config().dtype or torch.float32
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=stored if dtype == "auto" else dtype, trust_remote_code=False, **implementations
        )
    model.config.name_or_path = str(weights.folder)
    if (weights.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(weights.folder, local_files_only=True)
    return model


def _initial(tensor: FileTensor) -> torch.Tensor:
    if not tensor.is_matrix:
        return tensor.copied(Event())
    return tensor.view() if tensor.in_place else tensor.placeholder()


def _stream(model: PreTrainedModel, decoder: Decoder, placed: dict[str, FileTensor], budget: Budget) -> None:
    """Make every forward of the model bring its weights into memory."""
    layers = [
        Unit(f"layer {layer}", tuple(tensors.values()), {name: model.get_parameter(name) for name in tensors})
        for layer, tensors in enumerate(budget.layers)
    ]
    stream = WeightStream(layers, budget.head_slices(), budget.memory, budget.always)
    set_stream(decoder.module, stream)
    for layer, module in enumerate(decoder.layers):
        module.forward = _inside(partial(stream.present, layer), module.forward)
    decoder.module.forward = _checked(PassCheck(decoder.module), decoder.module.forward)
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # one name for tied ones

    def whole(module: Any, name: str) -> Unit:
        stored = names[id(module.weight)]
        return Unit(name, (placed[stored],), {stored: module.weight})

    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    embedding.forward = EmbeddingRows(whole(embedding, "the embedding"))
    head.forward = SlicedHead(stream, whole(head, "the lm_head"))
    refuse_generate(model)


def _inside(block: Callable[[], AbstractContextManager[None]], forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with block():
            return forward(*args, **kwargs)

    return run


def _checked(check: PassCheck, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        return forward(*args, **kwargs)

    return run
