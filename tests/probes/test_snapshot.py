"""A recording is as of its call: what is measured later does not change it, and it keeps no model."""

import gc
import pickle
import weakref

import pytest
import torch
import xarray as xr

import qwenlab as ql
from qwenlab import probes
from qwenlab.probes import Residual
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model


@pytest.fixture(scope="module")
def session():
    """A block of the default probes over two passes, with what was recorded after each, and the Datasets as of then."""
    model = tiny_model("qwen3_5_moe")
    ids = torch.randint(3, 50, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), watch(model, *probes.thorough(model)) as seen:
        taken = []
        for label in ("text", "code"):  # a second label makes the sums longer
            with seen.label(label):
                past = model(ids, use_cache=True).past_key_values
                model(ids[:, :3], past_key_values=past)
                model(ids[:, :1], past_key_values=past)
            labels = list(seen._tracker.labels)
            taken.append(
                (seen.recording(), {probe.name: probe.dataset(labels).copy(deep=True) for probe in seen.probes})
            )
    return taken


def test_a_recording_is_as_of_its_call_although_it_is_built_later(session):
    for recording, datasets in session:
        assert list(recording) == list(datasets)
        for node, dataset in datasets.items():
            xr.testing.assert_identical(recording[node], dataset)
            assert list(recording[node]) == list(dataset)
            assert list(recording[node].coords) == list(dataset.coords)


def test_the_default_probes_are_built_later():
    model = tiny_model("qwen3_5_moe")
    with torch.no_grad(), watch(model, *probes.defaults(model)) as seen:
        model(torch.arange(3, 20)[None])
    assert "tree" not in vars(seen.recording())
    assert all("changing" in vars(type(probe)) for probe in seen.probes)


def test_a_recording_that_was_not_read_is_pickled_and_saved(tmp_path):
    model = tiny_model("qwen3_5_moe")
    with torch.no_grad(), watch(model, *probes.defaults(model)) as seen:
        model(torch.arange(3, 20)[None])
    recording, other = seen.recording(), seen.recording()
    again = pickle.loads(pickle.dumps(recording))
    assert again.tree.identical(recording.tree)
    assert ql.Recording.open(other.save(tmp_path / "run.nc")).tree.equals(recording.tree)


def test_a_recording_keeps_no_model():
    model = tiny_model("qwen3_5_moe")
    with torch.no_grad(), watch(model, *probes.defaults(model)) as seen:
        model(torch.arange(3, 20)[None])
    recording, gone = seen.recording(), weakref.ref(model)
    del model, seen
    gc.collect()
    assert gone() is None
    assert int(recording["residual"]["tokens"].sum()) > 0


class Noted(Residual):
    """A probe of a user, which changes more than its base class."""

    def start(self, decoder):
        super().start(decoder)
        self.passes = []

    def on_tokens(self, tokens):
        self.passes.append(tokens.width)

    def dataset(self, labels):
        return super().dataset(labels).assign_attrs(passes=len(self.passes))


def test_a_probe_that_does_not_name_what_it_changes_is_built_at_once():
    model = tiny_model("qwen3_5_moe")
    with torch.no_grad(), watch(model, Noted()) as seen:
        model(torch.arange(3, 20)[None])
        first = seen.recording()
        model(torch.arange(3, 20)[None])
    assert first["residual"].attrs["passes"] == 1
    assert seen.recording()["residual"].attrs["passes"] == 2
