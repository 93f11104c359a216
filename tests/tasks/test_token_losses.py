"""Losses token by token: each in its place, with the class, the bytes and the domain of its token."""

import numpy as np
import pytest
import torch
import xarray as xr

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import CLASSES, losses, measure, text_task, token_classes


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


TEXTS = ["The king and the king of the land.", "x = 1\n", "37 + 45 = 82\n82 - 45 = 37\n"]


@torch.no_grad()
def test_each_token_has_its_own(toy):
    found = losses(toy, TEXTS, labels=["prose", "code", "sums"], max_tokens=16, n=2, batch_size=2)
    row = 0
    for number, (text, label) in enumerate(zip(TEXTS, ["prose", "code", "sums"], strict=True)):
        ids = toy.tokenizer(text).input_ids[:16]
        classes = token_classes(toy, text, n=2, max_tokens=16)
        for t in range(1, len(ids)):
            logits = toy.model(torch.tensor([ids[:t]])).logits[0, -1].double()
            here = found.isel(token=row)
            assert abs(float(here["loss"]) - (logits.logsumexp(0) - logits[ids[t]]).item()) < 1e-4
            assert (int(here["text"]), int(here["position"]), str(here["domain"].values)) == (number, t, label)
            assert int(here["id"]) == ids[t]
            assert int(here["bytes"]) == len(toy.tokenizer.decode([ids[t]]).encode())
            assert {name: bool(here[name]) for name in CLASSES} == {name: bool(classes[name][t]) for name in CLASSES}
            row += 1
    assert found.sizes["token"] == row
    assert (found.attrs["n"], found.attrs["texts"], found["loss"].attrs["units"]) == (2, 3, "nat/token")


def test_their_means_are_those_of_measure(toy):
    texts = ql.tasks.texts("prose", 3)
    found = losses(toy, texts, max_tokens=50)
    by_text = measure(toy, [text_task(toy, texts, max_tokens=50)])["loss"]
    np.testing.assert_allclose(found.groupby("text").mean()["loss"], by_text, rtol=1e-5)


def test_they_are_kept_on_disk(toy, tmp_path):
    found = losses(toy, TEXTS, labels=["a", "b", "a"])
    found.to_netcdf(tmp_path / "losses.nc", engine="h5netcdf")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "losses.nc", engine="h5netcdf"), found)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (dict(texts="a string"), r"losses\(checkpoint, texts\): give a list"),
        (dict(texts=["a b", "x"]), r"losses: texts \[1\] have fewer than two tokens"),
        (dict(texts=["a b"], labels=[]), "give a name for each of the 1 texts"),
        (dict(texts=["a b"], n=0), r"n=0\): give an integer"),
        (dict(texts=["a b"], max_tokens=1), r"losses\(max_tokens=1\): give an integer, 2 or more"),
        (dict(texts=["a b"], batch_size=0), r"losses\(batch_size=0\)"),
    ],
)
def test_foolish_arguments_are_refused(toy, given, why):
    with pytest.raises(BadArgument, match=why):
        losses(toy, **given)
