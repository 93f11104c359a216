"""What is added to the stream, held to the tokens."""

from hypothesis import given, settings
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.testing.strategies import made_recordings


@settings(max_examples=10)
@given(made_recordings(probes=["residual"]))
def test_residual_is_the_mean_over_tokens(case):
    result, raw = stats.residual(case.recording), case.residual
    assert_allclose(result["norm"], raw.norm.mean(axis=0))
    assert_allclose(result["stream_norm"], raw.stream_norm.mean(axis=0))
    assert_allclose(result["ratio"], (raw.norm / raw.stream_norm).mean(axis=0), rtol=1e-6)
    assert_allclose(result["cosine"], raw.cosine.mean(axis=0), rtol=1e-5, atol=1e-7)
    assert result["part"].values.tolist() == ["mixer", "mlp"]
