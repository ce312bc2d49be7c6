"""The compiler underneath computes sums rightly, and the check for it sees a wrong one."""

import jax.numpy as jnp
import pytest

from jaxsac import _canary


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 2.0])
def test_the_compiler_gets_no_sum_wrong(scale):
    wrong = list(_canary.wrong_sums(scale))
    assert not wrong, f"exclude this jaxlib: it is wrong in {wrong}"


def test_a_wrong_sum_is_seen(monkeypatch):
    shape, other, total = _canary._SUMS["sum(u * v) of rows"]

    def broken(xp, u, v, q):
        found = total(xp, u, v, q)
        return found.at[7].add(0.01) if xp is jnp else found

    monkeypatch.setitem(_canary._SUMS, "sum(u * v) of rows", (shape, other, broken))
    assert list(_canary.wrong_sums(0.1)) == [
        "sum(u * v) of rows, float32",
        "sum(u * v) of rows, float64",
    ]
