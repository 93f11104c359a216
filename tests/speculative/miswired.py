"""Copies of a checkpoint whose MTP head needs another contract than the code uses: the faults `audit` must name."""

import copy
import dataclasses

import torch

FP8_MAX = 448


def with_head(checkpoint, head):
    return dataclasses.replace(checkpoint, mtp=head)


def copied(head):
    """A copy with its own weights on the same target model."""
    return copy.deepcopy(head, {id(head.target_model): head.target_model})


@torch.no_grad()
def norms_shifted(head, by):
    out = copied(head)
    for module in out.modules():
        if isinstance(module, type(head.norm)):
            module.weight += by
    return out


@torch.no_grad()
def halves_swapped(head):
    out = copied(head)
    size = head.config.hidden_size
    out.fc.weight[:, :size], out.fc.weight[:, size:] = head.fc.weight[:, size:], head.fc.weight[:, :size]
    return out


@torch.no_grad()
def fp8_read_raw(head, block=128):
    """FP8 as in the releases (one scale per block; routers, shared expert gate and fc plain), without its scales."""
    out = copied(head)
    for name, weight in out.named_parameters():
        if weight.ndim > 1 and not any(part in name for part in ("mlp.gate.", "shared_expert_gate", "fc.")):
            for row in range(0, weight.shape[-2], block):
                for column in range(0, weight.shape[-1], block):
                    part = weight[..., row : row + block, column : column + block]
                    scale = part.abs().amax(dim=(-2, -1), keepdim=True) / FP8_MAX
                    part.copy_((part / scale).to(torch.float8_e4m3fn).float())
    return out


@torch.no_grad()
def made_for_before_the_norm(head):
    """The target model's final norm folded into the head's norm of hidden states, except its mean scale."""
    out = copied(head)
    scale = 1 + head.target_model.get_decoder().norm.weight
    folded = (1 + head.pre_fc_norm_hidden.weight) * scale / scale.square().mean().sqrt()
    out.pre_fc_norm_hidden.weight.copy_(folded - 1)
    return out


@torch.no_grad()
def blind(head):
    """A head that ignores the hidden state and reads only tokens."""
    out = copied(head)
    out.fc.weight[:, head.config.hidden_size :] = 0
    return out


@torch.no_grad()
def uneven(checkpoint, spread=0.6, seed=0):
    """The same model with a final norm of uneven scale: each channel is multiplied there, and divided where it is read.

    The toys' own final norm varies by only 5 % of its mean, so hidden states before and after it are almost parallel,
    and a head cannot distinguish them. Here it can, as with real checkpoints. The target model's results are unchanged;
    the head's change only by a factor per token that its norms nearly undo.
    """
    model = copy.deepcopy(checkpoint.model)
    generator = torch.Generator().manual_seed(seed)
    by = torch.exp(spread * torch.randn(model.config.hidden_size, generator=generator))
    head = copy.deepcopy(checkpoint.mtp, {id(checkpoint.model): model})
    final, own = model.get_decoder().norm, head.norm
    for norm in (final, own):
        norm.weight.copy_((1 + norm.weight) * by - 1)
    model.get_output_embeddings().weight.div_(by)
    read = head.pre_fc_norm_hidden
    read.weight.copy_((1 + read.weight) / by * by.square().mean().sqrt() - 1)
    return dataclasses.replace(checkpoint, model=model, mtp=head)
