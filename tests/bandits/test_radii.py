"""Confidence radii: coverage at all cycles together, how tight they are, what is explored, and the
local proof.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import bandits
from jaxsac.bandits.estimate.radii import design_numbers, diagonal_design_numbers
from jaxsac.bandits.phased.apsee import greedy_is_proved

D, S, SIGMA, DELTA, CYCLES, RUNS = 6, 2, 0.3, 0.05, 100, 2000


NOISES = {
    "gaussian": jax.random.normal,
    "rademacher": lambda key, shape: jax.random.rademacher(key, shape, jnp.result_type(float)),
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5),
}


def test_coverage_and_tightness():
    """Violations at any of the cycles stay below delta (within their standard error), and the worst
    run comes as near to the radius as stated.
    """
    tightness = {"l2": (0.2, 0.9), "hkz": (0.55, 1.2), "coord": (0.7, 1.4)}
    basis = bandits.exploration_basis(jax.random.key(1), bandits.Ball(), D, S)
    cycles = jnp.arange(1.0, CYCLES + 1)
    radii = {
        kind: jax.vmap(
            lambda c, k=kind: bandits.error_radius(c, basis, sigma=SIGMA, delta=DELTA, kind=k)
        )(cycles)
        for kind in tightness
    }
    solve = jnp.linalg.pinv(basis)

    @jax.jit
    @jax.vmap
    def worst(key):
        """For each noise and radius the largest error over radius of cycles 1..CYCLES: above 1 is a
        violation.
        """
        ratios = {}
        for noise, draw in NOISES.items():
            errors = (
                SIGMA * jnp.cumsum(draw(key, (CYCLES, D)), axis=0) / cycles[:, None]
            ) @ solve.T
            size, entry = jnp.linalg.norm(errors, axis=1), jnp.max(jnp.abs(errors), axis=1)
            ratios[noise] = {
                kind: jnp.max((entry if kind == "coord" else size) / radii[kind])
                for kind in tightness
            }
        return ratios

    for noise, kinds in worst(jax.random.split(jax.random.key(0), RUNS)).items():
        for kind, ratios in kinds.items():
            ratios, (least, most) = np.asarray(ratios), tightness[kind]
            assert np.mean(ratios > 1) <= DELTA + 3 * np.sqrt(DELTA / RUNS), (kind, noise)
            assert least < ratios.max() < most, (kind, noise, ratios.max())


def test_formulas():
    basis = np.diag([1.0, 2.0, 0.5])
    gram = basis.T @ basis
    inverse, c = np.linalg.inv(gram), 7
    level = np.log(np.pi**2 * c**2 * 3 / (3 * DELTA))
    t = np.log(np.pi**2 * c**2 / (6 * DELTA))
    expected = {
        "l2": SIGMA / 0.25 * np.sqrt(2 * np.trace(gram) * level / c),
        "hkz": SIGMA
        * np.sqrt(
            (np.trace(inverse) + 2 * np.sqrt(np.trace(inverse @ inverse) * t) + 2 * 4 * t) / c
        ),
        "coord": SIGMA * np.sqrt(2 * 4 * level / c),
    }
    for kind, value in expected.items():
        np.testing.assert_allclose(
            bandits.error_radius(c, jnp.asarray(basis), sigma=SIGMA, delta=DELTA, kind=kind),
            value,
            rtol=1e-12,
        )


KINDS = ["block_orthogonal", "gaussian_orthogonal", "uniform_orthogonal", "standard", "weighing"]


@pytest.mark.parametrize("kind", KINDS)
def test_exploration_bases(kind):
    box = bandits.Box(-0.2, 0.5)
    for action_set in (bandits.Ball(2.0), box):
        basis = np.asarray(
            bandits.exploration_basis(
                jax.random.key(0), action_set, 7, 3, kind=kind, allow_dense=True
            )
        )
        directions = basis / np.linalg.norm(basis, axis=1, keepdims=True)
        np.testing.assert_allclose(directions @ directions.T, np.eye(7), atol=1e-10)
        assert all(float(action_set.gauge(jnp.asarray(row))) <= 1 + 1e-9 for row in basis)
        dense = kind in ("gaussian_orthogonal", "uniform_orthogonal")
        assert ((basis != 0).sum(1).max() <= 3) == (not dense)  # dense bases leave the sparse set
    if dense:
        with pytest.raises(ValueError, match="block_orthogonal"):
            bandits.exploration_basis(jax.random.key(0), box, 7, 3, kind=kind)


def test_weighing_designs_measure_a_box_more_precisely():
    """Blocks of h signs: h times the information of the unit vectors."""
    box = bandits.Box(-1.0, 1.0)
    basis = np.asarray(bandits.exploration_basis(jax.random.key(0), box, 7, 5, kind="weighing"))
    information = basis.T @ basis
    np.testing.assert_allclose(information, np.diag(np.diag(information)), atol=1e-12)
    np.testing.assert_allclose(np.sort(np.diag(information)), [1, 2, 2, 4, 4, 4, 4])
    with pytest.raises(ValueError, match="weighing"):
        bandits.exploration_basis(jax.random.key(0), bandits.Box(), 7, 5, kind="weighing")


def test_the_local_proof_is_sound_and_reaches_further():
    """Whatever is proved holds for the worst of many parameters on the sphere of the error, and it
    is proved at larger errors.
    """
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
        proved = jax.vmap(lambda error: greedy_is_proved(ellipsoid, estimate, s, error, bound))(
            errors
        )
        largest = jnp.max(jnp.where(proved, errors, 0.0))
        near = jax.vmap(
            lambda direction: ellipsoid.greedy(estimate + largest * direction, s).indices
        )(directions)
        far = jax.vmap(
            lambda direction: ellipsoid.greedy(estimate + 8 * largest * direction, s).indices
        )(directions)
        same = lambda rows: jnp.all(rows == selection.indices[None], axis=1)  # noqa: E731
        return largest / plain, jnp.all(same(near)), jnp.all(same(far)), proved

    ratio, sound, beyond, proved = (np.asarray(x) for x in one(matrices, estimates))
    assert np.all(sound) and np.mean(beyond) < 0.5  # the sphere test can fail
    assert np.all(proved[:, :-1] >= proved[:, 1:])  # monotone in the error
    assert np.median(ratio) > 2 and ratio.min() > 0.85


def test_a_diagonal_design_has_the_numbers_of_its_basis():
    reach = jnp.asarray([0.5, 2.0, 3.0, 0.25])
    found = diagonal_design_numbers(jnp.append(reach, 0.0))  # nothing is learned of that axis
    np.testing.assert_allclose(found, design_numbers(jnp.diag(reach)), rtol=1e-12)
