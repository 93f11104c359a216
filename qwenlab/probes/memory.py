"""The memory probe: bytes of KV cache and of recurrent state, beside what the anatomy predicts."""

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
POINTS = 64


class Memory(Probe):
    """Bytes that the cache of a forward pass holds, at contexts a quarter of an octave apart.

    kv           keys and values of the attention layers: grows with the context
    recurrent    states of the DeltaNet layers; convolution their last inputs: the same at any context

    Measured as the bytes of the cache's tensors, predicted by `Anatomy` from the config alone.
    """

    name = "memory"

    def start(self, decoder: Decoder) -> None:
        """No context noted yet."""
        super().start(decoder)
        self.anatomy = anatomy(decoder.module)
        self._next = 0.0
        self._points: list[tuple[int, int, np.ndarray, np.ndarray]] = []

    def look_at_cache(self, cache: Cache, passed: ForwardPass) -> None:
        """Note the bytes of this cache, if its context is a quarter of an octave beyond the last one noted."""
        context, batch = passed.past + passed.width, passed.batch
        if context < self._next or len(self._points) >= POINTS:
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
        return np.array(
            [known.kv_bytes(context, batch), known.recurrent_bytes(batch), known.convolution_bytes(batch)],
            dtype=np.int64,
        )

    def dataset(self, labels: list[str]) -> xr.Dataset:
        """Bytes by context and store."""
        contexts = [point[0] for point in self._points]
        dims = ("context_point", "store")
        shape = (len(contexts), len(STORES))
        return self._dataset(
            labels,
            {
                "predicted_bytes": (
                    dims,
                    np.array([p[2] for p in self._points]).reshape(shape),
                    "B",
                    "bytes predicted from the config",
                ),
                "measured_bytes": (
                    dims,
                    np.array([p[3] for p in self._points]).reshape(shape),
                    "B",
                    "bytes of the cache's tensors",
                ),
            },
            store=("store", np.array(STORES, dtype=object)),
            context=("context_point", np.array(contexts, dtype=np.int64), {"units": "token"}),
            batch=("context_point", np.array([p[1] for p in self._points], dtype=np.int64), {"units": "sequence"}),
        )


def _bytes(layer: Any, names: tuple[str, ...]) -> int:
    """Bytes of the tensors a cache layer holds under these names."""
    total = 0
    for name in names:
        held = getattr(layer, name, None)
        for tensor in held.values() if isinstance(held, dict) else (held,):
            total += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
    return total
