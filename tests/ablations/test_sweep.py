"""Sweeps against a loop that reads one text at a time, and what is left of one that was cut off."""

import json
import math
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from tqdm.auto import tqdm

from qwenlab import interventions
from qwenlab.ablations.ablation import combined
from qwenlab.ablations.controls import controls
from qwenlab.ablations.sweep import sweep
from qwenlab.ablations.units import units
from qwenlab.errors import BadArgument, CannotIntervene, InterruptedWarning
from qwenlab.interventions.session import intervene
from qwenlab.tasks import Task

sweeping = sys.modules["qwenlab.ablations.sweep"]  # the package's own name `sweep` is the function
scoring = sys.modules["qwenlab.ablations.scoring"]
COORDINATES = {"ablation", "unit", "layer", "kind", "intervention", "control_of", "parameters", "text", "task"}


def some(checkpoint):
    """Units of several kinds, a set, and controls."""
    mixers = units(checkpoint)
    found = [*mixers, *units(checkpoint, "kind"), *units(checkpoint, "gate", layers=[2])]
    found += [units(checkpoint, "head", layers=[3])[1], units(checkpoint, "layer", layers=[1])[0]]
    found.append(combined([mixers[1], units(checkpoint, "mlp")[2]], "both"))
    return found + controls(mixers[:1], mixers, number=2)


@torch.no_grad()
def slow(checkpoint, ablations, tasks):
    """[ablation, score, text]: intervention, forward of one text by itself, float64; the unchanged model's last."""
    texts = [
        (torch.tensor([tokens]), asked) for task in tasks for tokens, asked in zip(task.tokens, task.asked, strict=True)
    ]
    before = [checkpoint.model(ids).logits[0].double().numpy() for ids, _ in texts]
    found = []
    for ablation in ablations:
        rows = []
        for (ids, asked), clean in zip(texts, before, strict=True):
            with intervene(checkpoint.model, *ablation.interventions):
                logits = checkpoint.model(ids).logits[0].double().numpy()
            rows.append(one_text(ids[0], asked, clean, logits))
        found.append(rows)
    found.append([one_text(ids[0], asked, clean, clean) for (ids, asked), clean in zip(texts, before, strict=True)])
    return np.moveaxis(np.array(found), 2, 1)


def one_text(tokens, asked, clean, logits):
    """Loss, accuracy, KL divergence and agreement, each the mean over the asked tokens."""
    scores = []
    for t in asked:
        p, q = (np.exp(each[t - 1] - each[t - 1].max()) for each in (clean, logits))
        p, q = p / p.sum(), q / q.sum()
        kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        scores.append((-math.log(q[tokens[t]]), q.argmax() == tokens[t], kl, p.argmax() == q.argmax()))
    return np.mean(scores, axis=0)


@pytest.fixture(scope="module")
def swept(opened, tasks):
    """Ablations of the moe family, and the sweep of them."""
    ablations = some(opened("moe"))
    return ablations, sweep(opened("moe"), ablations, tasks, progress=False)


@pytest.mark.slow
def test_it_is_the_slow_loop(checkpoint, tasks):
    ablations = some(checkpoint)
    found, expected = sweep(checkpoint, ablations, tasks, progress=False), slow(checkpoint, ablations, tasks)
    for place, name in enumerate(("loss", "accuracy", "kl", "agreement")):
        np.testing.assert_allclose(found[name], expected[:-1, place], rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["clean_loss"], expected[-1, 0], rtol=1e-5)
    np.testing.assert_allclose(found["clean_accuracy"], expected[-1, 1])
    assert float(found["kl"].max()) > 0.01 and float(found["agreement"].min()) < 1


def test_what_is_said_of_it(swept, moe, tasks):
    ablations, found = swept
    assert set(found.coords) == COORDINATES | {"chance"}
    assert found["ablation"].values.tolist() == [each.name for each in ablations]
    assert found["control_of"].values.tolist()[-2:] == ["mixer 0"] * 2
    assert found["task"].values.tolist() == ["plain"] * 3 + ["recall"] * 2
    np.testing.assert_array_equal(found["chance"], [np.nan] * 3 + [0.25] * 2)
    assert [found[name].attrs["units"] for name in ("loss", "accuracy", "kl", "agreement")] == [
        *("nat/token", "1", "nat/token", "1")
    ]
    assert all(found[name].attrs["long_name"] for name in found)
    attrs = found.attrs
    assert (attrs["checkpoint_hash"], attrs["dtype"], attrs["tokens"], attrs["sequences"]) == (
        *(moe.facts.hash, "float32", 58, 5),
    )
    assert json.loads(attrs["labels"]) == {"plain": 34, "recall": 24}
    same = sweep(moe, units(moe)[:1], tasks, progress=False)
    other = sweep(moe, units(moe)[:1], tasks[:1], progress=False)
    assert same.attrs["prompts_hash"] == attrs["prompts_hash"] != other.attrs["prompts_hash"]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing_beyond_rounding(swept, moe, tasks, batch_size):
    ablations, found = swept
    other = sweep(moe, ablations, tasks, batch_size=batch_size, progress=False)
    for name in found:
        np.testing.assert_allclose(other[name], found[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_only_the_scores_that_are_asked_for(swept, moe, tasks, monkeypatch, tmp_path):
    ablations, found = swept
    monkeypatch.setattr(scoring, "Reference", None)  # nothing is compared with the intact model's distributions
    some_scores = sweep(moe, ablations, tasks, scores=["accuracy", "loss"], resume=tmp_path / "kept", progress=False)
    assert list(some_scores) == ["loss", "accuracy", "clean_loss", "clean_accuracy"]
    assert all((some_scores[name] == found[name]).all() for name in some_scores)
    assert some_scores.attrs["layers_run"] == found.attrs["layers_run"]
    with pytest.raises(BadArgument, match="this file is from another sweep"):
        sweep(moe, ablations, tasks, scores=["loss"], resume=tmp_path / "kept", progress=False)


def test_the_share_of_layers_that_ran(moe, tasks):
    mixers = units(moe)
    assert sweep(moe, mixers, tasks, progress=False).attrs["layers_run"] == (4 + 3 + 2 + 1) / 16
    both = [*mixers, combined(mixers[2:3], "the same intervention as mixer 2")]
    found = sweep(moe, both, tasks, progress=False)
    assert found.attrs["layers_run"] == (4 + 3 + 2 + 1) / 20
    assert (found["loss"][2] == found["loss"][4]).all()


def test_the_model_is_as_it_was(moe, tasks, swept):
    before = {name: weight.clone() for name, weight in moe.model.named_parameters()}
    spaces = {name: set(vars(module)) for name, module in moe.model.named_modules()}
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        logits = moe.model(ids).logits
        sweep(moe, swept[0], tasks, progress=False)
        assert torch.equal(moe.model(ids).logits, logits)
    assert all(torch.equal(weight, before[name]) for name, weight in moe.model.named_parameters())
    assert {name: set(vars(module)) for name, module in moe.model.named_modules()} == spaces
    assert moe.model.training is False


def test_texts_that_come_out_as_nan_are_not_left_out(moe, tasks):
    broken = units(moe, "mixer", intervention=lambda name: interventions.Scale(name, by=math.nan), layers=[2])
    found = sweep(moe, [*broken, *units(moe, layers=[3])], tasks, progress=False)
    assert found.sizes["text"] == 5
    assert found["loss"][0].isnull().all() and found["loss"][1].notnull().all()


class Cut(Exception):
    """As if the model ran out of memory."""


def cut_off(monkeypatch, after, error):
    """Let the sweep fail after this many graded batches."""
    left, grade = [after], scoring.grade

    def failing(*args):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return grade(*args)

    monkeypatch.setattr(scoring, "grade", failing)


def test_it_goes_on_from_what_was_kept(moe, tasks, swept, tmp_path, monkeypatch):
    ablations = swept[0][:-2]  # no two of them are the same intervention
    keep = tmp_path / "deep" / "kept.npz"
    with monkeypatch.context() as patched:
        cut_off(patched, 9, Cut())
        with pytest.raises(Cut):
            sweep(moe, ablations, tasks, batch_size=2, resume=keep, progress=False)
    calls, grade = [], scoring.grade
    monkeypatch.setattr(scoring, "grade", lambda *args: (calls.append(len(args)), grade(*args))[1])
    again = sweep(moe, ablations, tasks, batch_size=2, resume=keep, progress=False)
    one_go = sweep(moe, ablations, tasks, batch_size=2, progress=False)
    assert again.drop_attrs().identical(one_go.drop_attrs())
    assert again.attrs["layers_run"] == one_go.attrs["layers_run"]
    assert calls.count(3) == 2 * 3 * len(ablations) - 8  # of three batches; eight were done before
    del calls[:]
    sweep(moe, ablations, tasks, batch_size=2, resume=keep, progress=False)
    assert calls == []
    assert [file.name for file in keep.parent.iterdir()] == ["kept.npz"]


KILLED = """
import os, signal, sys

sys.path.insert(0, sys.argv[3])
import qwenlab as ql
import qwenlab.ablations.resume as kept
from tests.ablations.conftest import drawn_tasks
from tests.ablations.test_sweep import scoring, some, sweep

kept._SAVE_EVERY = -1.0
graded, grade = [], scoring.grade

def killing(*args):
    graded.append(1)
    if len(graded) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return grade(*args)

scoring.grade = killing
ckpt = ql.open(sys.argv[1])
sweep(ckpt, some(ckpt), drawn_tasks(), batch_size=2, resume=sys.argv[2], progress=False)
"""


@pytest.mark.slow
def test_killed_in_the_middle(moe, tasks, tmp_path, request):
    keep, root = tmp_path / "kept.npz", request.config.rootpath
    command = [sys.executable, "-c", KILLED, moe.facts.source, str(keep), str(root)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with np.load(keep) as held:
        assert 0 < held["done"].sum() < held["done"].size
    again = sweep(moe, some(moe), tasks, batch_size=2, resume=keep, progress=False)
    assert again.drop_attrs().identical(sweep(moe, some(moe), tasks, batch_size=2, progress=False).drop_attrs())


def test_interrupted_it_returns_the_texts_that_are_done(moe, tasks, swept, tmp_path, monkeypatch):
    ablations, whole = swept
    different = len({each.intervention for each in ablations})
    with monkeypatch.context() as patched:
        cut_off(patched, 1 + different + 4, KeyboardInterrupt())  # in the second batch
        with pytest.warns(InterruptedWarning, match=r"interrupted after 2 of 5 texts; it returns those") as warned:
            part = sweep(moe, ablations, tasks, batch_size=2, resume=tmp_path / "kept.npz", progress=False)
    assert warned[0].filename == __file__
    assert part["text"].values.tolist() == [0, 3]  # the longest come first
    np.testing.assert_allclose(part["loss"], whole["loss"][:, [0, 3]], rtol=1e-4)
    assert json.loads(part.attrs["labels"]) == {"plain": 14, "recall": 12}
    assert (part.attrs["tokens"], part.attrs["sequences"]) == (26, 2)
    again = sweep(moe, ablations, tasks, batch_size=2, resume=tmp_path / "kept.npz", progress=False)
    assert again.sizes["text"] == 5


def test_interrupted_before_anything_is_done(moe, tasks, swept, monkeypatch):
    cut_off(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings(action="error"):
        sweep(moe, swept[0], tasks, progress=False)


def test_progress_counts_every_ablation_of_every_text(moe, tasks, monkeypatch, tmp_path):
    bars = []

    def noted(*args, **kwargs):
        bars.append(tqdm(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(sweeping, "tqdm", noted)
    for _ in range(2):  # the second has nothing to do
        sweep(moe, units(moe), tasks, batch_size=2, resume=tmp_path / "kept.npz")
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(20, 20, "text")] * 2


def test_what_a_sweep_refuses(moe, tasks, tmp_path):
    mixers = units(moe)
    with pytest.raises(BadArgument, match=r"sweep\(checkpoint, ablations, tasks\): give a list of at least one abl"):
        sweep(moe, [], tasks)
    with pytest.raises(BadArgument, match=r"several ablations are named 'mixer 0'"):
        sweep(moe, [mixers[0], mixers[0]], tasks)
    with pytest.raises(BadArgument, match=r"sweep\(checkpoint, tasks\): give a list of at least one qwenlab\.tasks"):
        sweep(moe, mixers, [])
    with pytest.raises(BadArgument, match=r"sweep: several tasks are named 'plain'"):
        sweep(moe, mixers, [tasks[0], tasks[0]])
    for size in (0, True, 1.5):
        with pytest.raises(BadArgument, match=rf"batch_size={size!r}\): give an integer, 1 or more"):
            sweep(moe, mixers, tasks, batch_size=size)
    with pytest.raises(BadArgument, match=r"sweep\(workers=0\): give an integer, 1 or more"):
        sweep(moe, mixers, tasks, workers=0)
    for scores in ("loss", []):
        with pytest.raises(BadArgument, match=r"sweep\(scores=.+\): give a list of scores, such as"):
            sweep(moe, mixers, tasks, scores=scores)
    with pytest.raises(BadArgument, match=r"sweep\(scores='los'\): give one of 'loss', .*; did you mean 'loss'"):
        sweep(moe, mixers, tasks, scores=["los"])
    with pytest.raises(BadArgument, match=r"sweep\(resume='.+'\): this file is damaged, or not from a sweep"):
        sweep(moe, mixers, tasks, resume=tmp_path)
    with pytest.raises(BadArgument, match=r"Task 'beyond' has tokens from 1 to 999, and the model has rows 0 to 287"):
        sweep(moe, mixers, [Task("beyond", ((1, 999),), ((1,),))])
    with pytest.raises(CannotIntervene, match=r"Noise\('layers\.0\.mixer\.decay'\)"):
        sweep(
            moe,
            units(moe, intervention=lambda name: interventions.Noise(f"{name}.decay"), layers=[0]),
            tasks,
            progress=False,
        )
