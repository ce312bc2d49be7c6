"""Support stability and growth against their formulas, with fits that only note what they got."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsac import control
from jaxsac.control.trust.resampling import growth, support_stability

T, M = 41, 6
RANDOM = np.random.default_rng(0)
LOG = control.Log(RANDOM.normal(size=(T, 1)), RANDOM.integers(0, M, (T, 1)), RANDOM.normal(size=T))
LAM = 0.5


def test_stability_counts_supports_of_complementary_halves():
    halves, lams = [], []

    def fit(log, lam):
        halves.append(np.asarray(log.contexts)[:, 0])
        lams.append(lam)
        tools = np.unique(np.asarray(log.actions))[: len(halves) % 4]  # none in the last
        return SimpleNamespace(support=tools)

    found = support_stability(jax.random.key(0), LOG, LAM, M, fit, 4)
    np.testing.assert_allclose(lams, LAM * np.sqrt(2))
    for one, other in (halves[:2], halves[2:]):
        assert len(one) == len(other) == T // 2 and not set(one) & set(other)
    assert set(halves[0]) != set(halves[2])
    supports = []
    for number, half in enumerate(halves, start=1):
        rows = np.isin(LOG.contexts[:, 0], half)
        supports.append(set(np.unique(LOG.actions[rows])[: number % 4].tolist()))
    assert found.sizes.tolist() == [1, 2, 3, 0]
    np.testing.assert_allclose(
        found.frequency, [sum(j in s for s in supports) / 4 for j in range(M)]
    )
    pairs = [(a, b) for i, a in enumerate(supports) for b in supports[i + 1 :]]
    overlap = np.mean([len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs])
    assert 0 < overlap < 1 and found.overlap == pytest.approx(overlap)


def test_growth_is_the_paired_gain_over_fits_that_look_at_no_context():
    fits = []

    def fit(log, lam):
        fits.append((set(np.asarray(log.contexts)[:, 0]), lam))
        return SimpleNamespace(support=np.arange(len(fits)), size=len(log.contexts), lam=lam)

    def value(policy, held_out):
        known = policy.lam < 100 * LAM
        return np.sin(np.asarray(held_out.utilities) * policy.size) if known else held_out.utilities

    found = growth(jax.random.key(1), LOG, LAM, fit, value)
    sizes = [5, 10, 20]
    assert found.records.tolist() == [len(records) for records, _ in fits[:3]] == sizes
    assert fits[0][0] < fits[1][0] < fits[2][0]  # nested
    np.testing.assert_allclose([lam for _, lam in fits[:3]], LAM * np.sqrt(T / np.array(sizes)))
    assert all(lam == pytest.approx(1e6 * LAM) for _, lam in fits[3:])
    assert found.support.tolist() == [1, 2, 3]
    out = np.asarray(LOG.utilities)[~np.isin(LOG.contexts[:, 0], list(fits[2][0]))]
    assert out.size == T - T // 2
    values = [np.sin(out * size) - out for size in sizes]
    np.testing.assert_allclose(found.value, np.mean(values, axis=1))
    gain = values[2] - values[1]
    assert found.gain == pytest.approx(gain.mean())
    assert found.gain_error == pytest.approx(gain.std(ddof=1) / np.sqrt(out.size))
