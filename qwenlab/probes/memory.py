"""The memory probe: bytes of KV cache and recurrent state, measured and predicted by the anatomy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from transformers.cache_utils import Cache

from qwenlab.capture.forward_pass import ForwardPass
from qwenlab.checkpoint.anatomy.anatomy import anatomy
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.probes.base import Probe

STORES = {"kv": ("keys", "values"), "recurrent": ("recurrent_states",), "convolution": ("conv_states",)}
"""The tensors of a cache layer in each store."""

MAX_CONTEXTS = 64


class Memory(Probe):
    """Bytes of the cache of a forward pass, at contexts a quarter of an octave apart.

    kv           keys and values of the attention layers; grows with the context
    recurrent    states of the DeltaNet layers; constant
    convolution  last inputs of their convolutions; constant

    Measured as the bytes of the cache's tensors; predicted by `Anatomy` from the config alone.
    """

    name = "memory"
    changing = ("_points",)

    def start(self, decoder: Decoder) -> None:
        super().start(decoder)
        self.anatomy = anatomy(decoder.module)
        self._next = 0.0
        self._points: list[list[int]] = []  # of each: context, batch, bytes predicted and bytes measured by store

    def on_cache(self, cache: Cache, forward_pass: ForwardPass) -> None:
        """Measure this cache if its context is a quarter of an octave beyond the last one measured."""
        context, batch = forward_pass.past + forward_pass.width, forward_pass.batch
        if context < self._next or len(self._points) >= MAX_CONTEXTS:
            return
        self._next = context * 2**0.25
        measured = [sum(_bytes(layer, names) for layer in cache.layers) for names in STORES.values()]
        known = self.anatomy
        predicted = [known.kv_bytes(context, batch), known.recurrent_bytes(batch), known.convolution_bytes(batch)]
        self._points.append([context, batch, *predicted, *measured])

    def dataset(self, labels: list[str]) -> xr.Dataset:
        points = np.array(self._points, dtype=np.int64).reshape(-1, 2 + 2 * len(STORES))
        context, batch, predicted, measured = np.split(points, (1, 2, 2 + len(STORES)), axis=1)
        dims = ("context_point", "store")
        return self.build_dataset(
            labels,
            {
                "predicted_bytes": (dims, predicted, "B", "bytes predicted from the config"),
                "measured_bytes": (dims, measured, "B", "bytes of the cache's tensors"),
            },
            store=("store", np.array(list(STORES), dtype=object)),
            context=("context_point", context[:, 0], {"units": "token"}),
            batch=("context_point", batch[:, 0], {"units": "sequence"}),
        )


def _bytes(layer: Any, names: tuple[str, ...]) -> int:
    """Return the bytes of a cache layer's tensors under these names."""
    values = [getattr(layer, name, None) for name in names]
    tensors = [each for value in values for each in (value.values() if isinstance(value, dict) else (value,))]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
