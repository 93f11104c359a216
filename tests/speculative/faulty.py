"""Rollbacks with one fault each, which `check_lossless` must name."""

import torch

from qwenlab.speculative.rollback import ReplayRollback, RerunRollback


class RecurrentKept(ReplayRollback):
    name = "recurrent state not restored"

    def keep(self, context, kept):
        states = [state.clone() for state in context.recurrent]
        super().keep(context, kept)
        for state, after in zip(context.recurrent, states, strict=True):
            state.copy_(after)


class ConvolutionKept(ReplayRollback):
    name = "convolution state not restored"

    def keep(self, context, kept):
        states = [state.clone() for state in context.convolution]
        super().keep(context, kept)
        for state, after in zip(context.convolution, states, strict=True):
            state.copy_(after)


class EmptyKeys(RerunRollback):
    name = "kept prefix replayed through an empty KV"

    def keep(self, context, kept):
        width, block = len(context.block), context.block
        if kept == width:
            return
        context.crop_attention(width)
        before = [(layer.keys, layer.values) for layer in context.attention]
        for layer in context.attention:
            layer.crop(-layer.get_seq_length())
        context.position -= width
        for state, old in zip((*context.recurrent, *context.convolution), self._before, strict=True):
            state.copy_(old)
        context.read(block[:kept])
        for layer, (keys, values) in zip(context.attention, before, strict=True):
            layer.keys, layer.values = torch.cat([keys, layer.keys], -2), torch.cat([values, layer.values], -2)


class Clamped(ReplayRollback):
    name = "commit index clamped at 3"

    def keep(self, context, kept):
        super().keep(context, min(kept, 1 + 3))


class TooMany(ReplayRollback):
    name = "one token too many committed"

    def keep(self, context, kept):
        super().keep(context, min(kept + 1, len(context.block)))


class PositionKept(ReplayRollback):
    name = "position offset not rolled back"

    def keep(self, context, kept):
        position = context.position
        super().keep(context, kept)
        context.position = position
