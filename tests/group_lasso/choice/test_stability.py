"""Stability selection against plain loops, and its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Groups, group_lasso
from jaxsac.group_lasso.choice.stability import _halves

AT = zoo.instance(3, "squared")
X, Y = jnp.asarray(AT.X), jnp.asarray(AT.y)
PLAIN = group_lasso.Problem(X, Y, Groups.from_sizes(zoo.SIZES), intercept=True)
T = zoo.NUM_SAMPLES


def test_mistakes_are_named():
    for changed, message in (
        (dict(lam=-1.0), "lam must be ≥ 0"),
        (dict(lam=1.0, threshold=0.5), r"threshold must be > 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            group_lasso.stability_selection(jax.random.key(0), PLAIN, **changed)


@pytest.mark.slow
def test_stability_selection_counts_fits_on_halves():
    lam, key, pairs = 0.8, jax.random.key(0), 6
    found = group_lasso.stability_selection(key, PLAIN, lam, num_pairs=pairs, threshold=0.7)
    halves = np.asarray(_halves(key, jnp.ones(T), num_pairs=pairs)).reshape(pairs, 2, T)
    assert np.all(np.isin(halves, [0.0, 2.0])) and np.all(halves.sum(axis=1) == 2.0)
    counts = np.zeros(len(zoo.SIZES))
    for half in halves.reshape(-1, T):
        rows = half > 0
        fit = group_lasso.solve(X[rows], Y[rows], PLAIN.groups, lam, intercept=True).check()
        counts += zoo.norms(np.asarray(fit.value.coef)) > 0
    frequency = counts / (2 * pairs)
    np.testing.assert_allclose(found.frequency, frequency)
    np.testing.assert_array_equal(found.selected, frequency >= 0.7)
    assert np.all(np.asarray(found.status) == 0) and 0 < found.selected.sum() < 7
    share = frequency.sum() ** 2 / 7
    np.testing.assert_allclose(
        [found.bound, found.unimodal_bound], [share / 0.4, share / (2 * (0.4 - 1 / 12))], rtol=1e-9
    )


@pytest.mark.slow
def test_noise_is_selected_no_more_often_than_the_bounds_say():
    groups, chosen, bounds = Groups.equal(40, 1), [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        features, y = jnp.asarray(rng.normal(size=(40, 40))), jnp.asarray(rng.normal(size=40))
        problem = group_lasso.Problem(features, y, groups)
        found = group_lasso.stability_selection(
            jax.random.key(seed), problem, 0.25, num_pairs=25, threshold=0.8
        )
        chosen.append(float(found.selected.sum()))
        bounds.append([float(found.bound), float(found.unimodal_bound)])
    error = 4 * np.std(chosen) / np.sqrt(len(chosen))
    assert np.mean(chosen) > 0 and np.all(np.mean(bounds, axis=0) >= np.mean(chosen) - error)
    assert np.all(np.asarray(bounds)[:, 1] < np.asarray(bounds)[:, 0])


def test_halves_are_complementary_and_weigh_as_much_as_all():
    counts = jnp.asarray([1.0, 2.0, 0.5, 0.0, 3.0, 1.5, 1.0])
    halves = np.asarray(_halves(jax.random.key(0), counts, num_pairs=20)).reshape(20, 2, 7)
    np.testing.assert_allclose(halves.sum(axis=2), counts.sum())
    kept = (halves > 0) | (np.asarray(counts) == 0)
    assert not ((halves[:, 0] > 0) & (halves[:, 1] > 0)).any()
    assert set(kept.sum(axis=2).ravel()) <= {3, 4}  # the record without weight shows in both
    assert len({tuple(half) for half in kept[:, 0]}) > 10
