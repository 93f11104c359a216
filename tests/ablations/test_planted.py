"""Models of which it is known in which layer they remember: a sweep must find that layer, and no other."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import qwenlab as ql
from qwenlab import stats
from qwenlab.ablations.controls import controls
from qwenlab.ablations.sweep import sweep
from qwenlab.ablations.units import units
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.tasks import Task
from qwenlab.testing.checkpoints import tiny_checkpoint

KINDS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
KEYS, VALUES, PAIRS = range(1, 9), range(20, 24), 2
ASKED = [*range(2 * PAIRS + 1, 4 * PAIRS, 2)]


def planted(folder, layer, **sizes):
    """A random checkpoint in which the mixers of all layers but one add nothing: their output projections are zero."""
    checkpoint = ql.open(tiny_checkpoint(folder, "qwen3_5", layer_types=KINDS, **sizes))
    decoder = decoder_of(checkpoint.model)
    for other, kind in enumerate(KINDS):
        if other != layer:
            mixer = decoder.mixer(other)
            torch.nn.init.zeros_(mixer.get_submodule(decoder.family.kind(kind).output).weight)
            mixer.requires_grad_(False)
    return checkpoint


def swept(checkpoint, tasks):
    mixers = units(checkpoint)
    return sweep(checkpoint, mixers + controls(mixers, mixers, number=2), tasks, progress=False)


def assert_found(found, layer, score):
    """The planted mixer has an effect, all others change nothing, and statistics say so."""
    others = [f"mixer {other}" for other in range(4) if other != layer]
    of, interventions = found["control_of"].values, found["intervention"].values
    untouched = np.array([f"layers.{layer}.mixer" not in one for one in interventions])
    for name in ("loss", "accuracy"):
        clean = np.broadcast_to(found[f"clean_{name}"], found[name][untouched].shape)
        np.testing.assert_array_equal(found[name][untouched], clean)
    np.testing.assert_array_equal(found["kl"][untouched], 0)
    np.testing.assert_array_equal(found["agreement"][untouched], 1)
    assert untouched[of == f"mixer {layer}"].all() and (of == f"mixer {layer}").sum() == 2
    effects = stats.ablations(found, score=score)
    for task in effects["task"].values:
        here = effects.sel(task=task)
        one, rest = here.sel(ablation=f"mixer {layer}"), here.sel(ablation=others)
        assert (int(one["rank_low"]), int(one["rank_high"])) == (1, 1)
        assert float(one["effect_interval"].sel(bound="low")) > 0
        assert float(one["effect_above_controls_interval"].sel(bound="low")) > 0
        assert bool(one["significant"]) and not rest["significant"].any()
        assert (rest["effect"] == 0).all() and (rest["rank_low"] >= 2).all()
        own = [name for name in here["control"].values if f" of mixer {layer}:" in name]
        assert len(own) == 2 and (here["control_effect"].sel(control=own) == 0).all()
    return effects


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_random_models_own_texts(tmp_path, layer):
    checkpoint = planted(tmp_path, layer)
    texts = torch.randint(1, 250, (12, 6), generator=torch.Generator().manual_seed(1))
    for _ in range(8):
        with torch.no_grad():
            texts = torch.cat([texts, checkpoint.model(texts).logits[:, -1:].argmax(-1)], dim=1)
    asked = (tuple(range(6, 14)),) * 12
    found = swept(checkpoint, [Task("own", tuple(map(tuple, texts.tolist())), asked)])
    assert (found["clean_accuracy"] == 1).all()
    assert float(found["accuracy"].sel(ablation=f"mixer {layer}").mean()) < 0.8
    assert_found(found, layer, "loss")


def recall(count, generator):
    """k v k v and then each key again, with its value after it: int [count, 4 pairs]."""
    keys = torch.stack([torch.randperm(len(KEYS), generator=generator)[:PAIRS] for _ in range(count)]) + KEYS[0]
    values = torch.randint(VALUES[0], VALUES[-1] + 1, (count, PAIRS), generator=generator)
    order = torch.stack([torch.randperm(PAIRS, generator=generator) for _ in range(count)])
    pairs, asked = torch.stack([keys, values], -1), torch.stack([keys.gather(1, order), values.gather(1, order)], -1)
    return torch.cat([pairs.flatten(1), asked.flatten(1)], dim=1)


def train(checkpoint, layer, steps=200, rate=5e-3):
    """Teach recall, which only the mixer of one layer can carry; it starts with a memory of many tokens."""
    model, decoder = checkpoint.model, decoder_of(checkpoint.model)
    mixer = decoder.mixer(layer)
    generator = torch.Generator().manual_seed(0)
    steps_of_time = torch.empty_like(mixer.dt_bias).uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp()
    mixer.dt_bias.data = steps_of_time + torch.log(-torch.expm1(-steps_of_time))
    for other, kind in enumerate(KINDS):  # they add nothing, and need not run for that
        if other != layer:
            attention = kind == "full_attention"
            decoder.mixer(other).forward = lambda hidden_states, attention=attention, **_: (
                (torch.zeros_like(hidden_states), None) if attention else torch.zeros_like(hidden_states)
            )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        tokens = recall(32, generator)
        logits = model(tokens, use_cache=False).logits[:, [t - 1 for t in ASKED]]
        F.cross_entropy(logits.flatten(0, 1), tokens[:, ASKED].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    for other in range(len(KINDS)):
        vars(decoder.mixer(other)).pop("forward", None)


@pytest.mark.slow
def test_the_layer_that_learnt_to_recall(tmp_path):
    layer = 1
    checkpoint = planted(tmp_path, layer, intermediate_size=64, mtp=None)
    train(checkpoint, layer)
    texts = recall(24, torch.Generator().manual_seed(99))
    task = Task("recall", tuple(map(tuple, texts.tolist())), (tuple(ASKED),) * 24, 1 / len(VALUES), tuple(VALUES))
    found = swept(checkpoint, [task])
    assert float(found["clean_accuracy"].mean()) > 0.95
    assert float(found["accuracy"].sel(ablation=f"mixer {layer}").mean()) < 0.45  # of four values
    effects = assert_found(found, layer, "accuracy")
    assert float(effects["share_lost"].sel(ablation=f"mixer {layer}").item()) > 0.8
    assert_found(found, layer, "loss")
