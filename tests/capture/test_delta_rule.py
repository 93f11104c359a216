"""Reading the delta rule of one model from several threads."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch

from qwenlab.capture.delta_rule import DeltaRuleHooks
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.families import DELTANET


def test_a_pass_may_run_while_a_reader_is_added(moe, monkeypatch):
    """Each time the layers of a new reader are looked up, another thread runs the model."""
    decoder, ids, calls = decoder_of(moe), torch.arange(4)[None], list[int]()
    part, layers = Decoder.part, decoder.layers_of(DELTANET)

    def part_with_a_pass(self, layer, word):
        if word == "mixer":
            pool.submit(moe, ids).result(30)
        return part(self, layer, word)

    with ExitStack() as first, ExitStack() as second, ThreadPoolExecutor(1) as pool:
        for layer in layers:
            DeltaRuleHooks(decoder, first).read(layer, lambda call, kwargs, result: None)
        hooks = DeltaRuleHooks(decoder, second)
        monkeypatch.setattr(Decoder, "part", part_with_a_pass)
        for layer in layers:
            hooks.read(layer, lambda call, kwargs, result: calls.append(call.key.shape[2]))
        monkeypatch.undo()
        calls.clear()
        moe(ids)
    assert calls == [decoder.mixer(layers[0]).num_k_heads] * len(layers)
