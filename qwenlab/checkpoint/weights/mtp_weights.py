"""Load the `mtp.*` tensors of a checkpoint, in any of their published layouts, as an `MtpHead`."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.weights.layout import FP8_BLOCK, assembled, expected, misfits
from qwenlab.checkpoint.weights.shards import Weights, shorten
from qwenlab.checkpoint.weights.stored_format import is_readable
from qwenlab.errors import BrokenMtpHead


def load_mtp(target: PreTrainedModel, weights: Weights, config: TextConfig) -> MtpHead | None:
    """Load the MTP head of a checkpoint; return None if it has no `mtp.*` tensors.

    The head gets the device and dtype of the target model's lm_head. Supported layouts: names that start with `mtp.` or
    `model.mtp.`; experts fused (one tensor with three axes) or separate (three matrices per expert); 16 or 32 bit, or
    FP8 with one `weight_scale_inv` per block: W = fp8 * scale.

    Raises BrokenMtpHead, with the names of the tensors, unless they are exactly those of one head for this model.
    """
    prefix = mtp_prefix(weights, config)
    if prefix is None:
        return None
    with torch.device("meta"):
        head = MtpHead(target)
    fused = {prefix + name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    stored = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)}
    block = config.weight_block or FP8_BLOCK
    shapes = expected(fused, stored, block)
    wrong = misfits(shapes, stored) + [f"{name} is not part of the head" for name in stored if name not in shapes]
    wrong += [f"{name} is stored as {tensor.dtype}" for name, tensor in stored.items() if not is_readable(tensor)]
    if wrong:
        raise BrokenMtpHead(
            f"The MTP head in {weights.folder} does not match the target model:\n  {shorten(wrong)}\n"
            "Download the shards again. A checkpoint without any mtp.* tensor also opens, with mtp=None."
        )
    lm_head = target.get_output_embeddings()
    device, dtype = _device(lm_head), lm_head.weight.dtype
    state = assembled(dict(weights.read(stored)), fused, block)
    head.load_state_dict({k.removeprefix(prefix): v.to(device, dtype) for k, v in state.items()}, assign=True)
    return head.eval()


def mtp_prefix(weights: Weights, config: TextConfig) -> str | None:
    """The prefix of the head's tensor names; None if the checkpoint or its family has no head."""
    short = config.family.mtp_prefix
    prefixes = (short, f"model.{short}") if short else ()
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in weights.tensors)), None)


def _device(lm_head: nn.Module) -> torch.device:
    """The device on which the lm_head computes; accelerate leaves offloaded weights on the meta device until needed."""
    offloaded = getattr(getattr(lm_head, "_hf_hook", None), "execution_device", None)
    return next(lm_head.parameters()).device if offloaded is None else torch.device(offloaded)
