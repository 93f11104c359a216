"""The `mtp.*` tensors of a checkpoint, in any of their published layouts -> an `MtpHead` on its trunk."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.weights.layout import FP8_BLOCK, assembled, expected, misfits
from qwenlab.checkpoint.weights.shards import Weights, some
from qwenlab.checkpoint.weights.stored_format import is_readable
from qwenlab.errors import BrokenMtpHead


def load_mtp(trunk: PreTrainedModel, weights: Weights, config: TextConfig) -> MtpHead | None:
    """The head of a checkpoint, on the device and in the dtype of the trunk's lm_head; None where it has no `mtp.*`.

    Accepted: tensors under `mtp.` or `model.mtp.`; experts fused (one tensor of three axes) or each with its own three
    matrices; 16 or 32 bit, or FP8 with one `weight_scale_inv` a block: W = fp8 * scale.

    Raises BrokenMtpHead, naming tensors, where they are not exactly those of one head on this trunk.
    """
    prefix = mtp_prefix(weights, config)
    if prefix is None:
        return None
    with torch.device("meta"):
        head = MtpHead(trunk)
    fused = {prefix + name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    stored = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(prefix)}
    block = config.weight_block or FP8_BLOCK
    shapes = expected(fused, stored, block)
    wrong = misfits(shapes, stored) + [f"{name} has no place in the head" for name in stored if name not in shapes]
    wrong += [f"{name} is stored as {each.dtype}" for name, each in stored.items() if not is_readable(each)]
    if wrong:
        raise BrokenMtpHead(
            f"the MTP head in {weights.folder} does not fit its trunk:\n  {some(wrong)}\n"
            "Fetch the shards again; a checkpoint without any mtp.* tensor opens too, with mtp=None."
        )
    lm_head = trunk.get_output_embeddings()
    device, dtype = _device(lm_head), lm_head.weight.dtype
    state = assembled(dict(weights.read(stored)), fused, block)
    head.load_state_dict({k.removeprefix(prefix): v.to(device, dtype) for k, v in state.items()}, assign=True)
    return head.eval()


def mtp_prefix(weights: Weights, config: TextConfig) -> str | None:
    """What the names of the head's tensors begin with; None where there are none, or the family has no head."""
    short = config.family.mtp_prefix
    both = (short, f"model.{short}") if short else ()
    return next((prefix for prefix in both if any(name.startswith(prefix) for name in weights.tensors)), None)


def _device(lm_head: nn.Module) -> torch.device:
    """Where the lm_head computes: accelerate keeps an offloaded weight on the meta device until it is needed."""
    offloaded = getattr(getattr(lm_head, "_hf_hook", None), "execution_device", None)
    return next(lm_head.parameters()).device if offloaded is None else torch.device(offloaded)
