"""Confidence radii: coverage at all cycles together, how tight they are, and wrong locks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits
from jaxsac.bandits.local_proof import greedy_is_proved

D, S, SIGMA, DELTA, CYCLES, RUNS = 6, 2, 0.3, 0.05, 100, 2000


def worst_ratio(kind, noise, basis):
    """For each run the largest error over radius of cycles 1..CYCLES: above 1 is a violation."""
    radii = jax.vmap(lambda c: bandits.error_radius(c, basis, sigma=SIGMA, delta=DELTA, kind=kind))(jnp.arange(1.0, CYCLES + 1))
    solve = jnp.linalg.pinv(basis)

    def one(key):
        shape = (CYCLES, basis.shape[0])
        if noise == "gaussian":
            draws = jax.random.normal(key, shape)
        elif noise == "rademacher":
            draws = jax.random.rademacher(key, shape, jnp.result_type(float))
        else:
            draws = jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5)
        errors = (SIGMA * jnp.cumsum(draws, axis=0) / jnp.arange(1.0, CYCLES + 1)[:, None]) @ solve.T
        size = jnp.max(jnp.abs(errors), axis=1) if kind == "coord" else jnp.linalg.norm(errors, axis=1)
        return jnp.max(size / radii)

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), RUNS)))


@pytest.mark.parametrize("kind, least, most", [("l2", 0.2, 0.9), ("hkz", 0.55, 1.2), ("coord", 0.7, 1.4)])
def test_coverage_and_tightness(kind, least, most):
    """Violations stay below delta (within their standard error), and the worst run comes as near to the radius as stated."""
    basis = bandits.exploration_basis(jax.random.key(1), bandits.Ball(), D, S)
    for noise in ("gaussian", "rademacher", "uniform"):
        ratios = worst_ratio(kind, noise, basis)
        assert np.mean(ratios > 1) <= DELTA + 3 * np.sqrt(DELTA / RUNS)
        assert least < ratios.max() < most, (kind, noise, ratios.max())


def test_formulas():
    basis = np.diag([1.0, 2.0, 0.5])
    gram = basis.T @ basis
    inverse, c = np.linalg.inv(gram), 7
    level = np.log(np.pi**2 * c**2 * 3 / (3 * DELTA))
    t = np.log(np.pi**2 * c**2 / (6 * DELTA))
    expected = {
        "l2": SIGMA / 0.25 * np.sqrt(2 * np.trace(gram) * level / c),
        "hkz": SIGMA * np.sqrt((np.trace(inverse) + 2 * np.sqrt(np.trace(inverse @ inverse) * t) + 2 * 4 * t) / c),
        "coord": SIGMA * np.sqrt(2 * 4 * level / c),
    }
    for kind, value in expected.items():
        np.testing.assert_allclose(bandits.error_radius(c, jnp.asarray(basis), sigma=SIGMA, delta=DELTA, kind=kind), value, rtol=1e-12)


@pytest.mark.parametrize("kind", ["block_orthogonal", "gaussian_orthogonal", "uniform_orthogonal", "standard"])
def test_exploration_bases(kind):
    box = bandits.Box(-0.2, 0.5)
    for action_set in (bandits.Ball(2.0), box):
        basis = np.asarray(bandits.exploration_basis(jax.random.key(0), action_set, 7, 3, kind=kind, allow_dense=True))
        directions = basis / np.linalg.norm(basis, axis=1, keepdims=True)
        np.testing.assert_allclose(directions @ directions.T, np.eye(7), atol=1e-10)
        assert all(float(action_set.gauge(jnp.asarray(row))) <= 1 + 1e-9 for row in basis)
        dense = kind in ("gaussian_orthogonal", "uniform_orthogonal")
        assert ((basis != 0).sum(1).max() <= 3) == (not dense)  # dense bases leave the sparse set
    if dense:
        with pytest.raises(ValueError, match="block_orthogonal"):
            bandits.exploration_basis(jax.random.key(0), box, 7, 3, kind=kind)


@pytest.mark.parametrize("sigma", [SIGMA, "auto"])
def test_wrong_locks_are_rare_and_locks_happen(sigma):
    theta = jnp.asarray([1.0, 0.9, 0.5, 0.3, -0.2, 0.1], jnp.float32)
    algorithm = bandits.apsee(bandits.Ball(), sparsity=S, sigma=sigma, delta=DELTA, radius="coord")
    run = jax.jit(jax.vmap(lambda key: bandits.simulate(key, algorithm, theta, sigma=SIGMA, horizon=4000, record=jnp.asarray([4000]))))(
        jax.random.split(jax.random.key(4), 400)
    )
    wrong = np.asarray(run.locked) & np.any(np.asarray(run.support) != [0, 1], axis=1)
    assert wrong.mean() <= DELTA + 3 * np.sqrt(DELTA / 400)
    assert np.mean(run.locked) > 0.9
    if sigma == "auto":
        assert run.lock_time.min() > 6  # one cycle says nothing about the noise
    else:
        proved = bandits.stopping_time(algorithm, theta)
        assert np.mean(np.asarray(run.lock_time) <= proved) >= 1 - DELTA and proved < 4000


def test_the_stopping_time_is_the_first_cycle_that_suffices():
    theta = jnp.asarray([1.0, 0.9, 0.5, 0.3, -0.2, 0.1])
    for algorithm, gap, norm in (
        (bandits.apsee(bandits.Ball(), sparsity=S, sigma=SIGMA, radius="hkz"), 0.4, 1.0),
        (bandits.apsee_greedy(bandits.Ball(2.0), sparsity=1, sigma=SIGMA, radius="hkz"), 0.2, 2.0),
    ):
        cycle = bandits.stopping_time(algorithm, theta) / D
        radius = lambda c: float(bandits.error_radius(c, jnp.eye(D) * norm, sigma=SIGMA, delta=DELTA, kind="hkz"))  # noqa: B023, E731
        assert 4 * norm * radius(cycle) < gap <= 4 * norm * radius(cycle - 1)
    assert bandits.stopping_time(algorithm, jnp.zeros(D)) == np.inf


def test_the_local_proof_is_sound_and_reaches_further():
    """Whatever is proved holds for the worst of many parameters on the sphere of the error, and it is proved at larger errors."""
    d, s = 8, 3
    factors = np.random.default_rng(0).normal(size=(20, d, d))
    matrices = jnp.asarray(factors @ factors.transpose(0, 2, 1) / d + 0.5 * np.eye(d))
    estimates = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, size=(20, d)))
    directions = jax.random.normal(jax.random.key(0), (500, d))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    @jax.jit
    @jax.vmap
    def one(matrix, estimate):
        ellipsoid = bandits.Ellipsoid(matrix)
        bound = 1 / jnp.sqrt(jnp.linalg.eigvalsh(matrix)[0])
        selection = ellipsoid.greedy(estimate, s)
        plain = selection.gap / (2 * bound)
        errors = plain * 1.15 ** jnp.arange(40.0)
        proved = jax.vmap(lambda error: greedy_is_proved(ellipsoid, estimate, s, error, bound))(errors)
        largest = jnp.max(jnp.where(proved, errors, 0.0))
        near = jax.vmap(lambda direction: ellipsoid.greedy(estimate + largest * direction, s).indices)(directions)
        far = jax.vmap(lambda direction: ellipsoid.greedy(estimate + 8 * largest * direction, s).indices)(directions)
        same = lambda rows: jnp.all(rows == selection.indices[None], axis=1)  # noqa: E731
        return largest / plain, jnp.all(same(near)), jnp.all(same(far)), proved

    ratio, sound, beyond, proved = (np.asarray(x) for x in one(matrices, estimates))
    assert np.all(sound) and np.mean(beyond) < 0.5  # the sphere test can fail
    assert np.all(proved[:, :-1] >= proved[:, 1:])  # monotone in the error
    assert np.median(ratio) > 2 and ratio.min() > 0.85


def test_the_local_radius_locks_earlier_and_right():
    theta, matrix = jnp.asarray([1.0, 0.8, 0.3, -0.2, 0.1, 0.0]), jnp.eye(D) + 0.2 * (jnp.ones((D, D)) - jnp.eye(D))
    times, keys = [], jax.random.split(jax.random.key(1), 50)
    right = bandits.greedy_support(bandits.Ellipsoid(matrix), theta, S).indices
    for radius in ("hkz", "local"):
        algorithm = bandits.apsee_greedy(bandits.Ellipsoid(matrix), sparsity=S, sigma=0.1, radius=radius)
        simulate = partial(bandits.simulate, algorithm=algorithm, theta=theta, sigma=0.1, horizon=40_000, record=jnp.asarray([1]))
        run = jax.jit(jax.vmap(simulate))(keys)
        assert np.mean(run.locked) > 0.9
        assert np.all(np.asarray(run.support)[np.asarray(run.locked)] == np.sort(right))
        times.append(np.median(run.lock_time))
    assert times[1] < 0.5 * times[0]
    with pytest.raises(ValueError, match="hkz"):
        bandits.apsee_greedy(bandits.LpBall(1.5), sparsity=S, sigma=0.1, radius="local")
