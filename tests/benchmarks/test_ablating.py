"""The benchmark of what is saved below an edit: its variants give the same numbers, and its counts are right."""

import json

import pytest
import torch

import qwenlab as ql
from benchmarks import ablating
from qwenlab.capture.layout import attachment
from qwenlab.checkpoint import decoder_of
from qwenlab.testing.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return ql.open(tiny_checkpoint(tmp_path_factory.mktemp("moe"), mtp=None))


@pytest.fixture(scope="module")
def written(checkpoint, tmp_path_factory):
    """What the whole of it writes, of one round."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ablating, "opened", lambda name, folder: checkpoint)
        ablating.main(models=["tiny"], rounds=1, out=out)
    (file,) = out.glob("ablating-*.json")
    return json.loads(file.read_text())


def test_layers_that_run_are_counted(written):
    cases = written["models"]["tiny"]["cases"]
    assert {name: (each["edited passes"], each["layers run"]) for name, each in cases.items()} == {
        "mixer 0 alone": (1, 1),
        "every mixer": (4, (4 + 3 + 2 + 1) / 16),
        "mixers of the upper half": (2, (2 + 1) / 8),
        "patching every residual, one position": (4, (4 + 3 + 2 + 1) / 16),
    }
    assert all(each["time"]["median"] > 0 for each in cases.values())


def test_what_is_held_is_the_stream_the_mixer_and_its_heads_of_each_layer(written, checkpoint):
    decoder = decoder_of(checkpoint.model)
    projections = [attachment(decoder, layer, "mixer.heads").module for layer in range(len(decoder.layers))]
    per_token = sum(2 * checkpoint.model.config.hidden_size + each.in_features for each in projections)
    assert written["models"]["tiny"]["bytes held"] == ablating.TEXTS * ablating.TOKENS * per_token * 4
    assert written["meaning"] == ablating.MEANING and written["machine"]["torch threads"] == 1


def test_both_variants_give_the_same_numbers_and_one_runs_every_layer(checkpoint):
    for name, call in ablating.calls(checkpoint).items():
        saved = call()
        with ablating.every_layer():
            whole = call()
        assert saved.drop_attrs().identical(whole.drop_attrs()), name
        if "layers_run" in whole.attrs:
            assert whole.attrs["layers_run"] == 1
    assert call().attrs["checkpoint_hash"] == checkpoint.facts.hash
    with ablating.counting() as skipped:
        ablating.calls(checkpoint)["every mixer"]()
    assert skipped == [0, 1, 2, 3]
