"""The distribution of each kind of random weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from qwenlab.checkpoint.anatomy.tensors import Tensor
from qwenlab.checkpoint.config import TextConfig


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of weights.

    quantile  the weight at a probability in (0, 1), for arrays
    gain      the quantile function of a factor for each row
    """

    quantile: Callable[[np.ndarray], np.ndarray]
    gain: Callable[[np.ndarray], np.ndarray] | None = None


def distribution(tensor: Tensor, config: TextConfig) -> Distribution:
    """The distribution of the weights of one tensor.

    Each is chosen so that activations keep a size of about 1 at any width, and that the statistics of two heads, tokens
    or experts differ:

    matrices        N(0, 1 / fan-in), embedding included: outputs of normed inputs have variance 1
    convolution     N(0, 1), four times 1 / fan-in: silu then lets the keys and queries of different tokens point the
                    same way to some degree, so that what DeltaNet reads from its state (mean square 1e-4 to 1e-2) is
                    far above the eps of its output norm (1e-6)
    router          N(0, s^2 / fan-in), s log-uniform from 1 to 2 for each expert: an expert with a large s has one of
                    the largest logits more often, and is chosen more often
    A_log, dt_bias  A uniform from 1 to 16, dt log-uniform from 0.001 to 0.1, the values with which training begins
                    (Dao & Gu 2024, arXiv:2405.21060, and the GatedDeltaNet layer of flash-linear-attention): half-lives
                    ln 2 / (A dt) from 0.4 to 700 tokens
    norms           w of N(0, 0.1^2) where the norm multiplies by 1 + w, N(1, 0.1^2) where it multiplies by w
                    (DeltaNet's output norm, the vision tower)
    q_norm, k_norm  w of N(0.5, 0.1^2): attention logits then have a standard deviation of 2.25, and a few positions
                    take most of the weight
    biases          N(0, 0.1^2)
    """
    deltanet, name, module = config.family.deltanet, tensor.name, tensor.module
    vision_norm = tensor.part == "vision" and len(tensor.shape) == 1 and not name.endswith(".bias")
    if module == "A_log":
        return Distribution(lambda at: np.log(1 + 15 * at))
    if module == "dt_bias":
        return Distribution(lambda at: _inverse_softplus(_log_uniform(1e-3, 1e-1)(at)))
    if name.endswith(f".{deltanet.path}.{deltanet.convolution}.weight"):
        return Distribution(ndtri)
    if name.endswith(f".{config.family.router}.weight"):
        return Distribution(_normal(0, tensor.shape[-1] ** -0.5), gain=_log_uniform(1, 2))
    if vision_norm or name.endswith(f".{deltanet.path}.{deltanet.output_norm}.weight"):
        return Distribution(_normal(1, 0.1))
    if module in ("q_norm", "k_norm"):
        return Distribution(_normal(0.5, 0.1))
    if len(tensor.shape) == 1:
        return Distribution(_normal(0, 0.1))
    fan_in = tensor.size // tensor.shape[0] if tensor.part == "vision" else tensor.shape[-1]  # patches have 4 axes
    return Distribution(_normal(0, fan_in**-0.5))


def _normal(mean: float, deviation: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda at: mean + deviation * ndtri(at)


def _log_uniform(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda at: low * (high / low) ** at


def _inverse_softplus(value: np.ndarray) -> np.ndarray:
    return value + np.log(-np.expm1(-value))
