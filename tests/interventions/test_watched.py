"""What probes record under interventions, and how recordings name them."""

import contextlib
import json

import pytest
import torch

from qwenlab.errors import InterventionNotApplied
from qwenlab.interventions import MaskExperts, Scale, Zero, intervene
from qwenlab.probes import Attention, DeltaNet, Residual, Routing, watch
from tests.interventions.feeding import logits, of_every_sort
from tests.probes.compare import assert_same


@pytest.fixture
def ids(text):
    return torch.stack([text(9), text(9, 1)])


@pytest.mark.parametrize("outside", [False, True])
def test_a_watch_sees_the_changed_pass_wherever_it_stands(model, text, ids, outside):
    interventions = of_every_sort(model, text)
    routing = (Routing(every=1),) if hasattr(model.config, "num_experts") else ()

    def seen_by(outside):
        seen = watch(model, DeltaNet(every=1, prediction_heads="all"), Attention(every=1), Residual(every=1), *routing)
        session = intervene(model, *interventions)
        with torch.no_grad():
            if outside:
                with seen, session:
                    model(ids)
            else:
                with session, seen:
                    model(ids)
        return seen.recording()

    found = seen_by(outside)
    assert_same(found, seen_by(not outside))
    assert json.loads(found.attrs["interventions"]) == [str(each) for each in interventions]


def sums(model, ids, probe, *interventions):
    with torch.no_grad(), watch(model, probe) as seen, intervene(model, *interventions):
        model(ids)
    return seen.recording()[probe.name].sum(("label", "fold"))


def test_each_probe_sees_what_was_put_in(moe, ids):
    contributions = sums(moe, ids, Residual(every=1), Zero("layers.1.mlp"), Scale("layers.2.mixer", by=0.0))
    norms = contributions["norm_sum"]
    assert norms.sel(layer=1, part="mlp") == 0 == norms.sel(layer=2, part="mixer") < norms.sel(layer=1, part="mixer")
    gates = sums(moe, ids, DeltaNet(every=1), Zero("layers.0.mixer.beta"), Zero("layers.1.mixer.decay"))
    assert float(gates["beta_sum"].sel(layer=0).sum()) == 0 < float(gates["beta_sum"].sel(layer=1).sum())
    assert float(gates["alpha_sum"].sel(layer=1).sum()) < 1e-12 < float(gates["alpha_sum"].sel(layer=0).sum())
    looks = sums(moe, ids, Attention(every=1), Zero("layers.3.mixer.query"))
    even = 2 * float(torch.arange(1, 10).log().sum())  # nats, over the tokens of two texts
    assert looks["entropy_sum"].sel(layer=3).values == pytest.approx(even, rel=1e-4)
    load = sums(moe, ids, Routing(every=1), MaskExperts([2, 5]))["load"]
    assert int(load.sel(expert=[2, 5]).sum()) == 0 and int(load.sum()) == 4 * 18 * 2


def test_a_recording_names_the_interventions_of_the_passes_it_saw(small, ids):
    with watch(small, Residual()) as seen:
        logits(small, ids)
        with intervene(small, Zero("layers.0.mixer")), intervene(small, Zero("layers.0.mlp"), Zero("layers.1.mlp")):
            logits(small, ids)
        with intervene(small, Zero("layers.1.mixer")), contextlib.suppress(InterventionNotApplied):
            pass_over = watch(small, Residual())
            with pass_over:
                logits(small, ids)
    assert json.loads(seen.recording().attrs["interventions"]) == [
        "Zero('layers.0.mixer')", "Zero('layers.0.mlp')", "Zero('layers.1.mlp')", "Zero('layers.1.mixer')",
    ]  # fmt: skip
    assert json.loads(pass_over.recording().attrs["interventions"]) == ["Zero('layers.1.mixer')"]
