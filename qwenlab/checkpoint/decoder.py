"""The stack of decoder layers inside a model, whatever wraps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from qwenlab.checkpoint.families import Family, family_of
from qwenlab.errors import AmbiguousModel, BadArgument, NotAHybrid


@dataclass(frozen=True, slots=True)
class Decoder:
    """The stack of decoder layers inside a model, whatever wraps it."""

    module: PreTrainedModel
    path: str  # from the model given; "" where it is the stack itself
    family: Family
    layer_types: tuple[str, ...]

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return cast(nn.ModuleList, self.module.layers)

    def mixer(self, layer: int) -> nn.Module:
        """The DeltaNet or attention module of one layer."""
        return self.layers[layer].get_submodule(self.family.mixer(self.layer_types[layer]))

    def part(self, layer: int, word: str) -> Any:
        """The submodule of a layer that `word` names in the family table ("mixer", "router", ...); None without one."""
        module: Any = self.layers[layer]
        path = self.family.mixer(self.layer_types[layer]) if word == "mixer" else getattr(self.family, word)
        for name in path.split("."):
            module = getattr(module, name, None)
        return module

    def layers_with(self, word: str) -> tuple[int, ...]:
        """The layers that have such a part."""
        return tuple(layer for layer in range(len(self.layers)) if self.part(layer, word) is not None)

    def layers_of(self, kind: str) -> tuple[int, ...]:
        """The layers whose mixer is of this kind."""
        return tuple(layer for layer, found in enumerate(self.layer_types) if found == kind)

    def layer_path(self, layer: int) -> str:
        """Path of one layer from the model given."""
        return ".".join(part for part in (self.path, "layers", str(layer)) if part)


def decoder_of(model: nn.Module) -> Decoder:
    """Find the decoder stack of a causal model, a ForConditionalGeneration wrapper, or a module that holds one.

    Raises NotAHybrid or UnsupportedFamily for a model that is not of our families, and AmbiguousModel for a module
    that holds more than one stack.
    """
    found = [(path, module) for path, module in model.named_modules() if _is_stack(module)]
    if not found:
        raise NotAHybrid(
            f"{type(model).__name__} holds no stack of decoder layers whose config has `layer_types`.\n"
            "Give a hybrid model of transformers, or a module that has one among its submodules."
        )
    if len(found) > 1:
        where = ", ".join(path or "itself" for path, _ in found)
        raise AmbiguousModel(
            f"{type(model).__name__} holds {len(found)} stacks of decoder layers: {where}.\nGive the one that is meant."
        )
    path, stack = found[0]
    return Decoder(stack, path, family_of(stack.config), tuple(stack.config.layer_types))


def module_of(model: nn.Module | Any) -> nn.Module:
    """The module itself, or the one a Checkpoint holds. Raises BadArgument for what is neither."""
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise BadArgument(
            f"This is a {type(model).__name__}, which is no model and holds none.\n"
            "Give a transformers model, or what qwenlab.open(...) returned."
        )
    return module


def _is_stack(module: nn.Module) -> bool:
    return (
        isinstance(module, PreTrainedModel)
        and isinstance(getattr(module, "layers", None), nn.ModuleList)
        and getattr(module.config, "layer_types", None) is not None
    )
