"""The file of a sweep: what it is of is part of it, and half of one is refused."""

import numpy as np
import pytest
import torch

from qwenlab.ablations import resume as keeping
from qwenlab.ablations.resume import ScoreTable, key_of
from qwenlab.ablations.scoring import BatchScores
from qwenlab.ablations.sweep import sweep
from qwenlab.ablations.units import units
from qwenlab.errors import BadArgument
from qwenlab.interventions.session import intervene
from qwenlab.interventions.values import Scale
from qwenlab.tasks import Task

SCORES = {name: np.array([1.0, 2.0]) for name in ("loss", "accuracy", "kl", "agreement")}


def test_what_was_put_comes_back(tmp_path):
    path = tmp_path / "kept.npz"
    kept = ScoreTable(path, "key", 3, 4)
    kept.put(BatchScores(None, (3, 0), SCORES))
    kept.put(BatchScores(1, (3, 0), SCORES, layers=(2, 4)))
    assert kept.missing([0, 3]) == [0, 2] and not kept.complete.any()
    kept.save()
    again = ScoreTable(path, "key", 3, 4)
    np.testing.assert_array_equal(again.scores["kl"][1], [2, np.nan, np.nan, 1])
    np.testing.assert_array_equal(again.scores["clean_loss"], [2, np.nan, np.nan, 1])
    assert again.done.tolist() == [[False] * 4, [True, False, False, True], [False] * 4]
    assert again.layers.tolist() == [2, 4]
    again.put(BatchScores(1, (1,), {name: each[:1] for name, each in SCORES.items()}))
    assert again.done[1].tolist() == [True, True, False, True]


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = ScoreTable(None, "key", 1, 2)
    kept.put(BatchScores(0, (0, 1), SCORES))
    kept.save()
    assert list(tmp_path.iterdir()) == []


def test_it_is_saved_now_and_then(tmp_path, monkeypatch):
    path = tmp_path / "kept.npz"
    kept = ScoreTable(path, "key", 1, 2)
    kept.put(BatchScores(0, (0, 1), SCORES))
    assert not path.exists()
    monkeypatch.setattr(keeping, "_SAVE_EVERY", -1.0)
    kept.put(BatchScores(0, (0, 1), SCORES))
    assert ScoreTable(path, "key", 1, 2).done.all()


def test_the_key_is_of_all_that_scores_depend_on(moe, tasks):
    mixers = units(moe)
    other = [Task("plain", tasks[0].tokens, tuple((1,) for _ in tasks[0].tokens)), tasks[1]]
    keys = [
        key_of(["hash", "float32"], mixers, tasks),
        key_of(["hash", "bfloat16"], mixers, tasks),
        key_of(["hash", "float32", "Zero('layers.1.mlp')"], mixers, tasks),
        key_of(["hash", "float32"], mixers[:3], tasks),
        key_of(["hash", "float32"], units(moe, "mlp"), tasks),
        key_of(["hash", "float32"], mixers, tasks[:1]),
        key_of(["hash", "float32"], mixers, other),
        key_of(["hash", "float32"], mixers, tasks, ["loss"]),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(["hash", "float32"], units(moe), list(tasks)) == keys[0]


@pytest.fixture
def file(moe, tasks, tmp_path):
    """The file of a sweep."""
    path = tmp_path / "kept.npz"
    sweep(moe, units(moe)[3:], tasks[:1], resume=path, progress=False)
    return path


def test_a_file_of_another_sweep_is_refused_and_left_alone(moe, opened, tasks, file):
    before = file.read_bytes()
    of_another = r"kept\.npz'\): this file is from another sweep: another checkpoint, precision, or list"
    for ckpt, ablations, asked in (
        (moe, units(moe)[2:], tasks[:1]),
        (moe, units(moe)[3:], tasks),
        (opened("dense"), units(opened("dense"))[3:], tasks[:1]),
    ):
        with pytest.raises(BadArgument, match=of_another):
            sweep(ckpt, ablations, asked, resume=file, progress=False)
    with intervene(moe, Scale("layers.1.mlp", by=0.5)):
        moe.model(torch.tensor([[1, 2]]))
        with pytest.raises(BadArgument, match=of_another):
            sweep(moe, units(moe)[3:], tasks[:1], resume=file, progress=False)
    assert file.read_bytes() == before


@pytest.mark.parametrize("left", [0, 10, 300, 2000, -1])
def test_half_a_file_is_refused(moe, tasks, file, left):
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(BadArgument, match=r"kept\.npz'\): this file is damaged, or not from a sweep \(.+\)\.\nGive"):
        sweep(moe, units(moe)[3:], tasks[:1], resume=file, progress=False)


def test_other_files_are_refused(moe, tasks, file):
    def refused():
        with pytest.raises(BadArgument, match=r"this file is damaged, or not from a sweep \(.+\)\.\nGive another"):
            sweep(moe, units(moe)[3:], tasks[:1], resume=file, progress=False)

    file.write_text("loss, accuracy\n1.0, 0.5\n")
    refused()
    np.savez(file, something=np.arange(3))
    refused()
    with file.open("wb") as single:
        np.save(single, np.arange(3))
    refused()
    np.savez(file, key=np.array("x"), done=np.zeros(2), layers=np.array([{}], dtype=object))
    refused()


def test_a_flipped_byte_is_noticed(moe, tasks, file):
    data = bytearray(file.read_bytes())
    at = data.index(b"loss.npy") + 170
    data[at] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(BadArgument, match="this file is damaged, or not from a sweep"):
        sweep(moe, units(moe)[3:], tasks[:1], resume=file, progress=False)
