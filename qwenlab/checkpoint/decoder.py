"""Find the stack of decoder layers inside a model, and the parts of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from qwenlab.checkpoint.families import EXTENDING, Family, family_of
from qwenlab.checkpoint.mixers.base import MixerKind
from qwenlab.checkpoint.module_tree import modules_of
from qwenlab.errors import AmbiguousModel, BadArgument, NotAHybrid, UnsupportedFamily


@dataclass(frozen=True, slots=True)
class Decoder:
    """The stack of decoder layers inside a model, under any wrapper."""

    module: PreTrainedModel
    path: str  # from the model to the stack; "" if the model is the stack itself
    family: Family
    layer_types: tuple[str, ...]

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return cast(nn.ModuleList, self.module.layers)

    def kind(self, layer: int) -> MixerKind:
        """Description of one layer's mixer."""
        return self.family.kind(self.layer_types[layer])

    def mixer(self, layer: int) -> nn.Module:
        """The DeltaNet or attention module of one layer."""
        return self.layers[layer].get_submodule(self.kind(layer).path)

    def part(self, layer: int, word: str) -> Any:
        """The submodule of a layer by its name in the family table ("mixer", "router", ...); None if it has none.

        "mixer_norm" and "mlp_norm" are the norms of the layer.
        """
        module: Any = self.layers[layer]
        for name in self._path(layer, word).split("."):
            module = getattr(module, name, None)
        return module

    def _path(self, layer: int, word: str) -> str:
        """Path of a part from its layer."""
        if word == "mixer":
            return self.kind(layer).path
        if word in ("mixer_norm", "mlp_norm"):
            return self.kind(layer).norms[word == "mlp_norm"]
        path: str = getattr(self.family, word)
        return path

    def adder(self, layer: int, word: str) -> Any:
        """The submodule whose output the layer adds to the residual stream, for its "mixer" or its "mlp"."""
        return self.part(layer, f"{word}_norm" if self.kind(layer).post_norm else word)

    def layers_with(self, word: str) -> tuple[int, ...]:
        """Indices of the layers that have this part."""
        return tuple(layer for layer in range(len(self.layers)) if self.part(layer, word) is not None)

    def layers_of(self, kind: str) -> tuple[int, ...]:
        """Indices of the layers whose mixer is of this kind."""
        return tuple(layer for layer, layer_type in enumerate(self.layer_types) if layer_type == kind)

    def layer_path(self, layer: int) -> str:
        """Path from the model to one of its layers."""
        return ".".join(part for part in (self.path, "layers", str(layer)) if part)


def decoder_of(model: nn.Module) -> Decoder:
    """Find the decoder stack of a causal model, a ForConditionalGeneration wrapper, or a module that contains one.

    Raises NotAHybrid or UnsupportedFamily for a model of another family, and AmbiguousModel for a module that contains
    more than one stack.
    """
    inner = modules_of(model, leaves=False)  # a stack contains its ModuleList
    stacks: list[tuple[str, Any]] = [(path, module) for path, module in inner if _is_stack(module)]
    if not stacks:
        raise NotAHybrid(
            f"{type(model).__name__} contains no stack of decoder layers whose config has `layer_types`.\n"
            "Pass a hybrid model of transformers, or a module that contains one."
        )
    if len(stacks) > 1:
        where = ", ".join(path or "itself" for path, _ in stacks)
        raise AmbiguousModel(
            f"{type(model).__name__} contains {len(stacks)} stacks of decoder layers: {where}.\nPass one of them."
        )
    path, stack = stacks[0]
    family = family_of(stack.config)
    for name, value in family.fixed:
        if getattr(stack.config, name, value) not in (value, None):
            raise UnsupportedFamily(
                f"This {family.name} model has {name}={getattr(stack.config, name)!r}; qwenlab knows the family with "
                f"{value!r} only.\nCorrect the config, or see {EXTENDING}."
            )
    return Decoder(stack, path, family, tuple(stack.config.layer_types))


def module_of(model: nn.Module | Any) -> nn.Module:
    """Return the module itself, or the model of a Checkpoint; raises BadArgument for anything else."""
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise BadArgument(
            f"Expected a model or a Checkpoint, got a {type(model).__name__}.\n"
            "Pass a transformers model, or the Checkpoint that qwenlab.open(...) returned."
        )
    return module


def _is_stack(module: nn.Module) -> bool:
    return (
        isinstance(module, PreTrainedModel)
        and isinstance(getattr(module, "layers", None), nn.ModuleList)
        and getattr(module.config, "layer_types", None) is not None
    )
