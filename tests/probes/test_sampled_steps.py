"""Decode steps that no probe samples: nothing is kept of them, nothing changes, and a silent layer is found."""

from typing import ClassVar

import pytest
import torch
import xarray as xr

import qwenlab as ql
from qwenlab.capture.sampled_steps import SampledSteps, drawn
from qwenlab.capture.tokens import TokenSample
from qwenlab.errors import BadArgument, SiteNotReached


def _decode(model, batch, steps, probes, pad=0):
    ids = torch.randint(1, 280, (batch, 9 + steps), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :pad] = 0
    with ql.watch(model, *probes) as seen, torch.no_grad():
        out = model(ids[:, :9], attention_mask=mask[:, :9] if pad else None, use_cache=True)
        for step in range(9, 9 + steps):
            model(
                ids[:, step : step + 1],
                attention_mask=mask[:, : step + 1] if pad else None,
                past_key_values=out.past_key_values,
            )
    return seen.recording()


@pytest.mark.parametrize(("batch", "pad"), [(1, 0), (3, 0), (2, 4)])
@pytest.mark.parametrize("every", [3, 8])
def test_the_recording_is_that_of_capturing_every_step(model, monkeypatch, batch, pad, every):
    def probes():
        chosen = (ql.probes.Residual, ql.probes.DeltaNet, ql.probes.Attention)
        routed = [ql.probes.Routing(every=2 * every)] if hasattr(model.config, "num_experts") else []
        return [*(probe(every=every) for probe in chosen), *routed]

    sparse = _decode(model, batch, 30, probes(), pad)
    monkeypatch.setattr(SampledSteps, "has", lambda self, step: True)
    monkeypatch.setattr(SampledSteps, "kept", lambda self, steps: torch.arange(len(steps)))
    complete = _decode(model, batch, 30, probes(), pad)
    for probe in probes():
        xr.testing.assert_identical(sparse[probe.name], complete[probe.name])


def test_unsampled_steps_leave_nothing_behind(moe):
    probes = (ql.probes.Residual(every=8), ql.probes.Timing(), ql.probes.Memory())
    with ql.watch(moe, *probes) as seen, torch.no_grad():
        cache = moe(torch.arange(9)[None], use_cache=True).past_key_values
        for token in range(16):
            moe(torch.tensor([[token + 9]]), past_key_values=cache)
        kept = [[sorted(step) for step in buffer.steps] for buffer in seen._dispatcher.buffers]
    sampled = {int(drawn(block, 8)) for block in range(5)}
    expected = [9, *(position for position in range(10, 25) if position in sampled)]  # the first step, and sampled ones
    assert all([9 + step for step, names in enumerate(steps) if names] == expected for steps in kept)


def test_a_part_that_skips_an_unsampled_step_is_an_error(moe):
    class Skips(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, hidden):
            self.calls += 1
            return hidden if self.calls == 4 else self.inner(hidden)

    layer, inner = moe.model.layers[1], moe.model.layers[1].mlp

    def decode():
        with ql.watch(moe, ql.probes.Residual(every=64)):
            layer.mlp = Skips(inner)
            cache = moe(torch.arange(12)[None], use_cache=True).past_key_values
            for token in range(8):
                moe(torch.tensor([[token]]), past_key_values=cache)

    try:
        with pytest.raises(SiteNotReached, match=r"layers\.1\.mlp: 12 of 20 tokens"):
            decode()
    finally:
        layer.mlp = inner


def test_sampled_sites_are_sites(moe):
    class Misnamed(ql.probes.Residual):
        def sampled_sites(self, layer):
            return ("mixer.gate",)

    session = ql.watch(moe, Misnamed())
    with pytest.raises(BadArgument, match=r"Misnamed.sampled_sites\(0\) names mixer.gate, which its sites\(0\) does"):
        session.__enter__()


def test_a_sampled_state_is_an_error(moe):
    class Skipping(ql.probes.StateProbe):
        name = "skipping"
        measured: ClassVar = {"norm": ("1", "norm of the state, summed over tokens")}

        def sampled_sites(self, layer):
            return self.sites(layer)

        def measure(self, layer, update):
            return {"norm": update.after.norm(dim=(-2, -1))}

    session = ql.watch(moe, Skipping())
    with pytest.raises(BadArgument, match=r"mixer\.state, which needs every token"):
        session.__enter__()


@pytest.mark.parametrize("other", ["sample", "at"])
def test_values_of_sampled_steps_are_not_read_at_other_tokens(moe, other):
    class Elsewhere(ql.probes.Residual):
        def reduce(self, layer, part, captured, tokens):
            sample = tokens.sample(5) if other == "sample" else TokenSample.at(tokens, tokens.position[0, 3:9])
            sample.of(captured[part])
            return super().reduce(layer, part, captured, tokens)

    message = r"every=\[8\]; they cannot be read at other tokens" + (", with every=5" if other == "sample" else r"\.")
    with pytest.raises(BadArgument, match=message):
        _decode(moe, 1, 30, [Elsewhere(every=8)])


def test_values_of_sampled_steps_are_not_read_as_those_of_every_token(moe):
    class Unsampled(ql.probes.Residual):
        def reduce(self, layer, part, captured, tokens):
            tokens.masked(captured[part])
            return super().reduce(layer, part, captured, tokens)

    with pytest.raises(BadArgument, match=r"those of 3 decode steps, and 30 were read\.\nRead them by"):
        _decode(moe, 1, 30, [Unsampled(every=8)])
