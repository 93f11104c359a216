"""Assert that two recordings of the same tokens are equal up to rounding."""

import numpy as np

RTOL = 1e-4
"""Of sums: float32 models, whose kernels add up in another order when the same tokens are fed another way."""


def assert_says(dataset, expected, rtol=RTOL):
    """A probe's Dataset holds exactly these variables, with these values."""
    assert set(dataset.data_vars) == set(expected)
    for name, values in expected.items():
        assert_equal(name, dataset[name].values, np.asarray(values), rtol)


def assert_same(first, second, rtol=RTOL, but=(), least=0.0):
    """Two recordings hold the same, but for the time it took and the memory; sums below `least` are rounding."""
    assert list(first) == list(second)
    for node in set(first) - {"timing", "memory"}:
        one, other = first[node], second[node]
        assert {str(c): one[c].values.tolist() for c in one.coords} == {
            str(c): other[c].values.tolist() for c in other.coords
        }
        for name in set(one.data_vars) - set(but):
            assert_equal(f"{node}.{name}", one[name].values, other[name].values, rtol, least)


def assert_equal(name, got, expected, rtol=RTOL, least=0.0):
    """Counts are equal; sums to `rtol`; a value at the edge of a bin may fall into the next one."""
    assert got.shape == expected.shape, name
    if name.endswith("_hist"):
        np.testing.assert_array_equal(got.sum(-1), expected.sum(-1), err_msg=name)
        moved = np.abs(np.cumsum(got, -1) - np.cumsum(expected, -1)).max()
        assert moved <= 1, f"{name}: {moved} values of a head crossed one edge"
    elif np.issubdtype(got.dtype, np.integer):
        np.testing.assert_array_equal(got, expected, err_msg=name)
    else:
        atol = max(least, rtol * 1e-1 * np.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=name)
