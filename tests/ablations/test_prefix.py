"""Layers and mixers whose results are reused: not one bit of the logits changes, and none of them runs."""

import json

import pytest
import torch

import qwenlab as ql
from qwenlab import interventions
from qwenlab.ablations.prefix import _first, record_prefix, reuse_prefix
from qwenlab.ablations.sweep import sweep
from qwenlab.ablations.units import units
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.interventions.points import HitCount
from qwenlab.interventions.session import InterventionSession, intervene

IDS = torch.randint(1, 250, (3, 21), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 13:] = 0


def kinds(taken):
    """Edits by name, with the first layer that each of them changes."""
    return {
        "zero": (2, [interventions.Zero("layers.2.mixer")]),
        "heads": (3, [interventions.Zero("layers.3.mixer.heads", heads=[1])]),
        "some positions": (1, [interventions.Zero("layers.1.mlp", positions=[3, 4])]),
        "scale": (1, [interventions.Scale("layers.1.residual", by=0.5)]),
        "mean": (2, [interventions.Mean("layers.2.mixer", cache=taken)]),
        "resample": (2, [interventions.Resample("layers.2.mixer", cache=taken, seed=3)]),
        "noise": (3, [interventions.Noise("layers.3.mixer", seed=1)]),
        "identity": (1, [interventions.Identity([1, 2])]),
        "patch": (2, [interventions.Patch("layers.2.mixer", cache=taken, positions=[0, 2])]),
        "set_gate": (1, [interventions.SetGate("layers.1.mixer.decay", to=1.0)]),
        "output gate": (3, [interventions.SetGate("layers.3.mixer.gate", to=1.0)]),
        "freeze_state": (2, [interventions.FreezeState(4, layers=[2])]),
        "reset_state": (1, [interventions.ResetState(8, layers=[1, 2])]),
        "no_conv": (1, [interventions.NoConv(layers=[1])]),
        "no_key_removal": (2, [interventions.NoKeyRemoval(layers=[2])]),
        "window": (3, [interventions.Window(4)]),
        "no_sink": (3, [interventions.NoSink()]),
        "several": (1, [interventions.Zero("layers.3.mixer"), interventions.Noise("layers.1.mlp")]),
        "the first layer": (0, [interventions.Zero("layers.0.mixer")]),
        "experts": (2, [interventions.MaskExperts([1, 4], layers=[2])]),
        "top_k": (3, [interventions.TopK(1, layers=[3])]),
        "shuffle_router": (2, [interventions.ShuffleRouter(layers=[2, 3])]),
        "no_shared_expert": (3, [interventions.NoSharedExpert(layers=[3])]),
    }


SPARSE = ("experts", "top_k", "shuffle_router", "no_shared_expert")
NAMES = tuple(kinds(None))
INSIDE_NO_MIXER = (
    *("zero", "heads", "some positions", "scale", "mean", "resample", "noise", "identity", "patch", "several"),
    *("the first layer", *SPARSE),
)


def counted(monkeypatch, modules):
    """The places among these modules of those that have run since the list was emptied."""
    found: list[int] = []
    for kind in {type(module) for module in modules}:

        def forward(self, *args, kind=kind, original=kind.forward, **kwargs):
            found.append(modules.index(self))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    return found


@pytest.fixture
def ran(monkeypatch, checkpoint):
    """The layers that have run since the list was emptied."""
    return counted(monkeypatch, list(decoder_of(checkpoint.model).layers))


@pytest.fixture
def mixed(monkeypatch, checkpoint):
    """The layers whose mixers have run since the list was emptied."""
    decoder = decoder_of(checkpoint.model)
    return counted(monkeypatch, [decoder.mixer(layer) for layer in range(len(decoder.layers))])


@torch.no_grad()
def test_values_beyond_the_limit_are_computed_again_once_and_one_layer_at_a_time(checkpoint, ran, monkeypatch):
    decoder, model = decoder_of(checkpoint.model), checkpoint.model
    with record_prefix(decoder) as whole:
        model(IDS, attention_mask=MASK, use_cache=False)
    values = [whole.at(layer) for layer in range(4)]
    assert ran == [0, 1, 2, 3]
    for kept in range(4):
        monkeypatch.setattr("qwenlab.ablations.prefix._KEPT", sum(each.nbytes for each in values[:kept]))
        with record_prefix(decoder) as prefix:
            model(IDS, attention_mask=MASK, use_cache=False)
        del ran[:]
        for layer, value in enumerate(values):
            assert torch.equal(prefix.stream(layer), value.stream)
            again = prefix.at(layer)
            for name in ("stream", "heads"):
                assert torch.equal(getattr(again, name), getattr(value, name))
            assert torch.equal(_first(again.mixer), _first(value.mixer))
        assert ran == list(range(kept, 4))
        assert len(prefix._kept) == kept
        assert torch.equal(prefix.stream(2), values[2].stream)  # also below the layer where it is now


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_bit_for_bit(checkpoint, ran, mixed, name, monkeypatch):
    decoder, model = decoder_of(checkpoint.model), checkpoint.model
    if name in SPARSE and not decoder.layers_with("experts"):
        pytest.skip("a dense family")
    with interventions.cache_activations(model, "layers.2.mixer") as taken:
        model(IDS.flip(1), use_cache=False)
    lowest, changes = kinds(taken)[name]
    how = dict(attention_mask=MASK, use_cache=False)
    with intervene(model, *changes):
        whole = model(IDS, **how).logits
    for kept in (2**28, 60_000, 0):
        monkeypatch.setattr("qwenlab.ablations.prefix._KEPT", kept)
        with record_prefix(decoder) as prefix:
            clean = model(IDS, **how).logits
        assert not torch.equal(whole, clean)
        prefix.at(lowest)
        del ran[:], mixed[:]
        with intervene(model, *changes) as session, reuse_prefix(prefix, session) as skipped:
            again = model(IDS, **how).logits
        assert torch.equal(again, whole)
        assert skipped == lowest
        assert ran == list(range(lowest, 4))
        assert mixed == ran[name in INSIDE_NO_MIXER :]
    assert torch.equal(model(IDS, **how).logits, clean)
    assert not any({"_call_impl", "forward"} & set(vars(module)) for module in decoder.module.modules())


@torch.no_grad()
def test_nothing_is_reused_for_an_intervention_without_a_layer(moe):
    session = InterventionSession(moe.model, [interventions.Zero("layers.2.mixer")])
    session.hits = {"one": [HitCount("layers.2.mixer")], "two": [HitCount("layers.12.mixer, its delta rule")]}
    with record_prefix(decoder_of(moe.model)) as prefix:
        moe.model(IDS, use_cache=False)
    with reuse_prefix(prefix, session) as skipped:
        assert skipped == 2
    session.hits["three"] = [HitCount("the cache")]
    with reuse_prefix(prefix, session) as skipped:
        assert skipped == 0


@torch.no_grad()
def test_nothing_is_reused_in_a_model_that_changes_the_stream_between_layers(moe):
    decoder = decoder_of(moe.model)

    with record_prefix(decoder) as prefix:
        moe.model(IDS, use_cache=False)
        assert prefix.reusable == 4
        prefix._record(2, lambda stream: prefix.at(0), (IDS.clone(),), {}, None)
    assert prefix.reusable == 0


@torch.no_grad()
def test_layers_in_which_somebody_listens_run(moe, tasks):
    alone = sweep(moe, units(moe), tasks, progress=False)
    heard = []
    layer = decoder_of(moe.model).layers[1].mlp
    hook = layer.register_forward_hook(lambda *args: heard.append(1))
    hooked = sweep(moe, units(moe), tasks, progress=False)
    hook.remove()
    assert len(heard) == 5  # the plain pass, and one under each intervention
    assert (hooked["loss"] == alone["loss"]).all()
    assert hooked.attrs["layers_run"] > alone.attrs["layers_run"] == (4 + 3 + 2 + 1) / 16


@torch.no_grad()
@pytest.mark.parametrize("name", ["DeltaNet", "Attention", "Routing", "Residual", "Timing", "SoftmaxAttention"])
def test_inside_a_watch(moe, tasks, name):
    """The recording is of every pass, those under interventions too."""
    alone = sweep(moe, units(moe, "layer"), tasks, progress=False)
    with ql.watch(moe, getattr(ql.probes, name)()) as seen:
        watched = sweep(moe, units(moe, "layer"), tasks, progress=False)
    assert int(seen.recording().attrs["tokens"]) == 5 * sum(map(len, (t for task in tasks for t in task.tokens)))
    assert (watched["loss"] == alone["loss"]).all()


@torch.no_grad()
@pytest.mark.parametrize("outer", [interventions.Scale("layers.1.mlp", by=0.5), interventions.Window(3)], ids=str)
def test_inside_another_intervention(moe, tasks, outer):
    with intervene(moe, outer):
        found = sweep(moe, units(moe), tasks, progress=False)
    assert found.attrs["interventions"] == json.dumps([str(outer)])
    batch = next(ql.tasks.task_batches(moe, tasks))
    with intervene(moe, outer, interventions.Zero("layers.3.mixer")):
        scores = ql.tasks.grade(batch, moe.model(**batch.inputs, use_cache=False).logits)
    assert found["loss"].sel(ablation="mixer 3").values[list(batch.texts)].tolist() == scores["loss"].tolist()
    with intervene(moe, outer):
        scores = ql.tasks.grade(batch, moe.model(**batch.inputs, use_cache=False).logits)
    assert found["clean_loss"].values[list(batch.texts)].tolist() == scores["loss"].tolist()
