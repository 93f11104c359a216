"""Mean losses by class and domain, against loops."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab import stats
from qwenlab.errors import BadArgument, MissingVariable, NotARecording, NothingMeasured
from qwenlab.record.recording import Recording
from qwenlab.stats.formulas.intervals import expanded_level

CLASSES = ("repeated", "first")


def made(texts, seed=0):
    """Losses of texts given as (domain, tokens): classes drawn at random, what some texts have nothing of."""
    rng = np.random.default_rng(seed)
    count = [tokens for _, tokens in texts]
    total = sum(count)
    data = {
        "loss": ("token", rng.exponential(2, total).astype(np.float32), {"units": "nat"}),
        "bytes": ("token", rng.integers(0, 6, total)),
        **{name: ("token", rng.random(total) < 0.3) for name in CLASSES},
    }
    coords = {
        "text": ("token", np.repeat(np.arange(len(texts)), count)),
        "domain": ("token", np.repeat([domain for domain, _ in texts], count)),
    }
    return xr.Dataset(data, coords, {"n": 3, "texts": len(texts)})


def loops(data, domain, name, texts=None):
    """Nats per token and bits per byte of a class in some texts, with repetitions."""
    nats = tokens = size = 0.0
    for text in np.unique(data["text"]) if texts is None else texts:
        for row in np.flatnonzero(data["text"].values == text):
            here = data.isel(token=row)
            if (domain is None or here["domain"] == domain) and (name == "all" or here[name]):
                nats, tokens, size = nats + float(here["loss"]), tokens + 1, size + float(here["bytes"])
    return nats / tokens if tokens else np.nan, nats / np.log(2) / size if size else np.nan, tokens


SOME = st.lists(st.tuples(st.sampled_from(["code", "prose"]), st.integers(1, 6)), min_size=1, max_size=5)


@settings(max_examples=30)
@given(texts=SOME, seed=st.integers(0, 999), by_domain=st.booleans())
def test_by_loops(texts, seed, by_domain):
    data = made(texts, seed)
    result = stats.losses(data, by_domain=by_domain, resamples=2)
    assert result["token_class"].values.tolist() == ["all", *CLASSES]
    domains = result["domain"].values.tolist() if by_domain else [None]
    assert domains == (list(dict.fromkeys(domain for domain, _ in texts)) if by_domain else [None])
    for domain in domains:
        here = result if domain is None else result.sel(domain=domain)
        assert int(here["texts"]) == sum(domain in (None, each) for each, _ in texts)
        for name in ("all", *CLASSES):
            nats, bits, tokens = loops(data, domain, name)
            one = here.sel(token_class=name)
            assert_allclose([one["loss"], one["bits_per_byte"], one["tokens"]], [nats, bits, tokens])


def test_intervals_draw_whole_texts():
    data = made([("code", 4), ("code", 9), ("prose", 5), ("code", 2), ("prose", 7)])
    result = stats.losses(data, level=0.5, resamples=6, seed=3)
    for domain, texts in (("code", [0, 1, 3]), ("prose", [2, 4])):
        count = len(texts)
        draws = np.random.default_rng(3).multinomial(count, [1 / count] * count, size=6)
        values = [loops(data, domain, "all", np.repeat(texts, times))[:2] for times in draws]
        level = expanded_level(0.5, count)
        expected = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        here = result.sel(domain=domain, token_class="all")
        assert_allclose(here["loss_interval"], expected[:, 0])
        assert_allclose(here["bits_per_byte_interval"], expected[:, 1])


def test_a_class_of_the_users_own_is_one_more():
    data = made([("code", 5), ("code", 6)])
    data["long"] = data["bytes"] > 3
    result = stats.losses(data)
    assert result["token_class"].values.tolist() == ["all", *CLASSES, "long"]
    assert_allclose(
        result["loss"].sel(token_class="long")[0], data["loss"].values[data["long"].values].mean(), rtol=1e-6
    )


def test_a_class_without_a_token_has_no_loss_and_one_text_no_interval():
    data = made([("code", 5)])
    data["first"][:] = False
    result = stats.losses(data)
    assert np.isnan(result["loss"].sel(token_class="first", domain="code"))
    assert result["tokens"].sel(token_class="first", domain="code") == 0
    assert result["loss_interval"].isnull().all()


def test_every_variable_has_its_attrs():
    result = stats.losses(made([("code", 5), ("prose", 6)]))
    assert (result["loss"].attrs["units"], result["bits_per_byte"].attrs["units"]) == ("nat/token", "bit/byte")
    assert result["loss_interval"].attrs["interval"] == "bootstrap of whole texts, expanded percentiles"
    assert result.attrs["texts"] == 2
    assert result.attrs["statistic"] == "losses"


def test_it_is_read_from_a_recording_too(tmp_path):
    data = made([("code", 5), ("prose", 6)])
    path = Recording({"losses": data}, {"checkpoint": "mine"}).save(tmp_path / "losses.nc")
    result = stats.losses(Recording.open(path))
    assert result.attrs["checkpoint"] == "mine"
    assert_array_equal(result["loss"], stats.losses(data)["loss"])


def test_invalid_losses_are_errors():
    data = made([("code", 5), ("prose", 6)])
    with pytest.raises(NothingMeasured, match="These losses have no tokens"):
        stats.losses(data.isel(token=slice(0)))
    data["loss"][7] = np.nan
    with pytest.raises(NothingMeasured, match="1 of 11 losses are NaN or infinite, the first in text 1"):
        stats.losses(data)


def test_other_data_are_refused():
    data = made([("code", 5)])
    with pytest.raises(MissingVariable, match=r"(?s)No bytes in.*made by qwenlab\.tasks\.losses"):
        stats.losses(data.drop_vars("bytes"))
    with pytest.raises(NotARecording, match=r"Give qwenlab\.tasks\.losses\(checkpoint, texts\)"):
        stats.losses([1, 2])
    with pytest.raises(BadArgument, match="A class is named 'all'"):
        stats.losses(data.assign(all=data["first"]))
    with pytest.raises(BadArgument, match="level=2"):
        stats.losses(data, level=2)
