import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import subsample_q as sq


@pytest.mark.parametrize("k,L", [(1, 1), (5, 1), (4, 2), (5, 3), (4, 4), (3, 5)])
def test_the_table_lists_every_histogram_once_and_index_inverts_it(k, L):
    space = sq.HistogramSpace(k, L)
    expected = {h for h in itertools.product(range(k + 1), repeat=L) if sum(h) == k}
    assert len(space) == math.comb(k + L - 1, L - 1) == len(expected)
    assert {tuple(map(int, row)) for row in space.table} == expected
    np.testing.assert_array_equal(space.index(space.table), np.arange(len(space)))
    held = jnp.asarray(space.table)
    np.testing.assert_array_equal(jax.jit(space.index)(held), np.arange(len(space)))
    np.testing.assert_array_equal(jax.jit(lambda: space.index(held))(), np.arange(len(space)))


def test_counts_that_are_no_histogram_have_no_index():
    """Also where their sum wraps to k."""
    space = sq.HistogramSpace(3, 3)
    wrong = np.array([[2, 2, 0], [4, -1, 0], [2**31 - 1, 2**31 - 1, 5]])
    np.testing.assert_array_equal(jax.jit(space.index)(jnp.asarray(wrong)), [-1, -1, -1])
    for row in wrong:
        with pytest.raises(ValueError, match="counts must be ≥ 0 and sum to k=3"):
            space.index(row)


def test_smaller_k_is_a_prefix():
    large, small = sq.HistogramSpace(6, 4), sq.HistogramSpace(4, 4)
    np.testing.assert_array_equal(large.table[: large.size_of(4), :-1], small.table[:, :-1])


def test_tables_beyond_memory_name_the_k_that_fits():
    with pytest.raises(ValueError, match=r"k=60 .* histograms, about .* GiB.*k=\d+ fits"):
        sq.HistogramSpace(60, 12)
    with pytest.raises(ValueError, match="k must be ≥ 1"):
        sq.HistogramSpace(0, 3)
    with pytest.raises(ValueError, match="columns"):
        sq.HistogramSpace(3, 3).index(np.zeros(2, np.int32))
