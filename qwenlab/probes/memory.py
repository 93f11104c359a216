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

STORES = ("kv", "recurrent", "convolution")
MAX_CONTEXTS = 64


class Memory(Probe):
    """Bytes of the cache of a forward pass, at contexts a quarter of an octave apart.

    kv           keys and values of the attention layers; grows with the context
    recurrent    states of the DeltaNet layers; constant
    convolution  last inputs of their convolutions; constant

    Measured as the bytes of the cache's tensors; predicted by `Anatomy` from the config alone.
    """

    name = "memory"

    def start(self, decoder: Decoder) -> None:
        """Empty the measurements."""
        super().start(decoder)
        self.anatomy = anatomy(decoder.module)
        self._next = 0.0
        self._points: list[tuple[int, int, np.ndarray, np.ndarray]] = []

    def on_cache(self, cache: Cache, forward_pass: ForwardPass) -> None:
        """Measure this cache if its context is a quarter of an octave beyond the last one measured."""
        context, batch = forward_pass.past + forward_pass.width, forward_pass.batch
        if context < self._next or len(self._points) >= MAX_CONTEXTS:
            return
        self._next = context * 2**0.25
        measured = np.zeros(len(STORES), dtype=np.int64)
        for layer in cache.layers:
            measured += [
                _bytes(layer, ("keys", "values")),
                _bytes(layer, ("recurrent_states",)),
                _bytes(layer, ("conv_states",)),
            ]
        self._points.append((context, batch, self._predict(context, batch), measured))

    def _predict(self, context: int, batch: int) -> np.ndarray:
        known = self.anatomy
        stores = [known.kv_bytes(context, batch), known.recurrent_bytes(batch), known.convolution_bytes(batch)]
        return np.array(stores, dtype=np.int64)

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Return bytes by context and store."""
        contexts = [point[0] for point in self._points]
        dims, shape = ("context_point", "store"), (len(contexts), len(STORES))
        predicted, measured = (np.array([point[i] for point in self._points]).reshape(shape) for i in (2, 3))
        return self._dataset(
            labels,
            {
                "predicted_bytes": (dims, predicted, "B", "bytes predicted from the config"),
                "measured_bytes": (dims, measured, "B", "bytes of the cache's tensors"),
            },
            store=("store", np.array(STORES, dtype=object)),
            context=("context_point", np.array(contexts, dtype=np.int64), {"units": "token"}),
            batch=("context_point", np.array([p[1] for p in self._points], dtype=np.int64), {"units": "sequence"}),
        )


def _bytes(layer: Any, names: tuple[str, ...]) -> int:
    """Return the bytes of a cache layer's tensors under these names."""
    total = 0
    for name in names:
        value = getattr(layer, name, None)
        for tensor in value.values() if isinstance(value, dict) else (value,):
            total += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
    return total
