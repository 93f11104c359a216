"""Probes of one's own: the values that they name reach them, and names that do not exist are errors."""

from functools import partial

import pytest
import torch

from qwenlab.capture.hooks import readable
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument
from qwenlab.interventions import cache_activations
from qwenlab.probes import DeltaNet, Probe, Residual, base
from qwenlab.probes.session import watch
from tests.probes.feeding import one_by_one, recorded

MIXER = ("mixer", "mixer.query", "mixer.key", "mixer.value", "mixer.beta", "mixer.decay", "mixer.gate", "mixer.heads")
WORDS = (*MIXER, "mlp", "router", "experts", "shared_expert")


class Reader(Probe):
    """Keeps every tensor that it gets, by layer and name."""

    name = "reader"

    def __init__(self, *names, **options):
        super().__init__(**options)
        self.names, self.read = names, {}

    def sites(self, layer):
        return self.names

    def reduce(self, layer, part, captured, tokens):
        for name in captured.keys() & set(self.names):
            self.read.setdefault((layer, name), []).append(captured[name].clone())

    def dataset(self, labels):
        return self.build_dataset(labels, {})


def test_a_name_that_a_layer_does_not_have_is_an_error(moe):
    decoder = decoder_of(moe)
    with pytest.raises(BadArgument) as caught, watch(moe, Reader("mixer.stat", layers=[0])):
        pass
    assert str(caught.value) == (
        "Reader.sites(0) names 'mixer.stat', which is not a value to read in layer 0, a linear_attention layer.\n"
        f"It has: {', '.join(readable(decoder, 0))}."
    )


def test_a_probe_that_names_no_value_and_reduces_some_is_an_error(moe):
    with pytest.raises(BadArgument) as caught, watch(moe, Reader()):
        pass
    assert str(caught.value) == (
        "Reader implements reduce, and its sites() name no value: it would read nothing.\n"
        'Return names, such as ("mixer.gate",), from sites(layer).'
    )


@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_a_probe_reads_the_values_of_sites_as_interventions_see_them(moe, text, kind):
    decoder = decoder_of(moe)
    layer = decoder.layers_of(kind)[0]
    words = [name for name in readable(decoder, layer) if name in WORDS]
    assert len(words) == {"linear_attention": 12, "full_attention": 9}[kind]
    feed = one_by_one([text(9), text(6, 1)])
    reader = Reader(*words, layers=[layer])
    with torch.no_grad(), watch(moe, reader) as seen:
        feed(moe, seen)
    with torch.no_grad(), cache_activations(moe, *(f"layers.{layer}.{word}" for word in words)) as cache:
        feed(moe, None)
    for word in words:
        values = cache[f"layers.{layer}.{word}"]
        for row, read in enumerate(reader.read[layer, word]):
            assert torch.equal(read[0], values[row, : read.shape[1]]), word


def test_sums_do_not_depend_on_how_many_layers_are_reduced_at_once(moe, text, monkeypatch):
    probes = [partial(probe, every=every) for probe in (DeltaNet, Residual) for every in (1, 3)]
    together = [recorded(moe, one_by_one([text(40)]), probe()) for probe in probes]
    monkeypatch.setattr(base, "MAX_WAITING_BYTES", 0)
    one_at_a_time = [recorded(moe, one_by_one([text(40)]), probe()) for probe in probes]
    for first, second in zip(together, one_at_a_time, strict=True):
        (node,) = first
        assert first[node].equals(second[node])
