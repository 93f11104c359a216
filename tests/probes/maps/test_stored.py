"""Stored maps: chosen rows, whole maps and block means; from prefill and decode, merged and saved."""

import numpy as np
import pytest
import torch

from qwenlab.errors import MapTooLarge
from qwenlab.probes import ImplicitAttention, SoftmaxAttention
from qwenlab.probes.maps import stored
from qwenlab.probes.session import watch
from qwenlab.record import Recording
from tests.probes import reference
from tests.probes.feeding import in_pieces, one_by_one, recorded
from tests.probes.mapping import KINDS, LENGTHS, POOL, assert_alike, both, by_row, seen


@pytest.fixture(scope="module")
def long(small, text):
    """A text, and its whole maps: of each node (text, position) -> weights."""
    tokens = text(150)
    maps = recorded(small, one_by_one([tokens]), *both(queries="all"))
    return tokens, {node: by_row(maps[node]) for node in KINDS}


@pytest.mark.parametrize("widths", [(150,), (1,), (70, 1, 65), (64, 64)])
def test_rows_of_decode_steps_reach_back_over_all_passes(small, long, widths):
    """Weights of token-by-token decode, of prefill and of a split of the two are the same."""
    tokens, whole = long
    result = recorded(small, in_pieces([tokens], widths), *both(queries="all"))
    for node in KINDS:
        weight = {tuple(at): row for at, row in by_row(result[node]).items()}
        assert len(weight) == 150
        for at, row in whole[node].items():
            np.testing.assert_allclose(weight[at], row, atol=1e-5)
            assert abs(row).max() > 1e-3


def test_kept_rows_are_the_references_and_end_at_their_token(model, texts):
    queries = [0, 4, 19]
    result = seen(model, texts, *both(every=8, queries=queries))
    for node, kind in KINDS.items():
        layers = reference.layers_where([text for _, text in texts], lambda layer, kind=kind: layer.kind == kind)
        name = "weight" if kind == "linear_attention" else "probability"
        expected = {(n, q) for n, length in enumerate(LENGTHS) for q in queries if q < length}
        assert set(by_row(result[node])) == expected
        for (number, position), row in by_row(result[node]).items():
            for place, layer in enumerate(layers):
                mixer = texts[number][1].layers[layer].mixer
                np.testing.assert_allclose(row[place], mixer[name][position, :, : position + 1], atol=1e-5)
        beyond = np.arange(result[node].sizes["key"]) > result[node]["position"].values[:, None]
        assert (result[node]["weight"].isnull().values == beyond).all()
        mixer = texts[0][1].layers[layers[0]].mixer
        assert ("mean_gate" in result[node]) == ("mean_gate" in mixer)
        if "mean_gate" in mixer:
            openness = mixer["mean_gate"][queries]
            np.testing.assert_allclose(result[node]["mean_gate"].values[0, :, :3].T, openness, atol=1e-5)


PAIR = [POOL[0], POOL[1, :11]]


@pytest.fixture(scope="module")
def whole(small):
    return recorded(small, one_by_one(PAIR), *both(queries="all"))


@pytest.mark.parametrize("widths", [(40,), (7, 1, 1)])
def test_block_means_are_means_of_the_whole_map(small, whole, widths):
    result = recorded(small, in_pieces(PAIR, widths), *both(block=4))
    for node in KINDS:
        assert result[node]["position"].values.tolist() == [*range(0, 40, 4), 0, 4, 8]
        assert result[node]["text"].values.tolist() == [0] * 10 + [1] * 3
        for row, (text, begin) in enumerate(
            zip(result[node]["text"].values, result[node]["position"].values, strict=True)
        ):
            here = whole[node].isel(row=whole[node]["text"].values == text)
            for name, of in (("weight", here["weight"].values), ("size", abs(here["weight"].values))):
                block = of[:, :, begin : begin + 4]
                means = [np.nanmean(block[..., k : k + 4], axis=(2, 3)) for k in range(0, begin + 1, 4)]
                got = result[node][name].values[:, :, row]
                np.testing.assert_allclose(got[..., : len(means)], np.moveaxis(means, 0, -1), atol=1e-6)
                assert np.isnan(got[..., len(means) :]).all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(queries=[1, 8]), dict(block=3)])
def test_recordings_merge_and_are_saved(small, text, options, tmp_path):
    texts = [text(length, length) for length in (5, 9, 14, 3, 20)]
    parts = [recorded(small, one_by_one(part), *both(every=1, **options)) for part in (texts[:3], texts[3:])]
    whole = recorded(small, one_by_one(texts), *both(every=1, **options))
    merged = parts[0].merge(parts[1])
    assert_alike(merged, whole)
    for node in KINDS:
        assert {n: v.attrs for n, v in merged[node].items()} == {n: v.attrs for n, v in whole[node].items()}
    assert_alike(Recording.open(merged.save(tmp_path / "maps.nc")), merged, rtol=0)


@pytest.mark.parametrize("probe", [ImplicitAttention, SoftmaxAttention])
def test_a_map_that_is_too_large_names_its_reductions(small, text, probe, monkeypatch):
    name = probe.__name__
    fix = r"\.\nStore chosen rows with queries=\[\.\.\.\], or means over blocks with block=8; statistics"
    message = rf"^{name}\(queries='all'\) stores every row of texts up to 2,048 tokens; this text has 2,049{fix}"
    with pytest.raises(MapTooLarge, match=message), watch(small, probe(queries="all", every=2049)), torch.no_grad():
        small(text(2049)[None])
    monkeypatch.setattr(stored, "MAX_LENGTH", 20)
    message = rf"^{name}\(block=2\) stores up to 20 blocks per text; this text of 41 tokens has 21\.\nStore chosen rows"
    with pytest.raises(MapTooLarge, match=message), watch(small, probe(block=2)):
        small(text(41)[None])
    monkeypatch.setattr(stored, "MAX_BYTES", 2000)
    message = rf"^{name} has stored 0\.0 GiB of maps; the limit is 0 GiB\.\nRead fewer texts, layers=\[\.\.\.\] or"
    with watch(small, probe(queries="all")):
        small(text(20)[None])
        with pytest.raises(MapTooLarge, match=message):
            small(text(20)[None])
