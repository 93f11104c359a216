"""Reading for a watch: each token once, however many of them are decoded."""

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import read, texts


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.mark.parametrize(("decode", "one_by_one"), [(0, 0), (1, 1), (5, 5), (1000, 24)])
def test_every_token_is_read_once(toy, decode, one_by_one):
    some = texts("code", 3)
    with ql.watch(toy, ql.probes.Timing(), ql.probes.Residual(layers=[0], every=1)) as seen:
        read(toy, some, max_tokens=24, batch_size=2, decode=decode)
    recording = seen.recording()
    assert int(recording["residual"]["tokens"].sum()) == 3 * 24
    assert int(recording["timing"]["tokens"].sel(phase="decode")) == one_by_one


def test_no_gradient_is_kept(toy):
    with ql.watch(toy, ql.probes.Memory()) as seen:
        read(toy, ["one text alone"], decode=1)
    assert seen.recording()["memory"].sizes["context_point"] > 0
    assert all(parameter.grad is None for parameter in toy.model.parameters())


def test_less_than_nothing_cannot_be_decoded(toy):
    with pytest.raises(BadArgument, match=r"read\(decode=-1\): give 0 or more"):
        read(toy, ["a text"], decode=-1)
