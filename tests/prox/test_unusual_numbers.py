"""Integers, ties, zeros, tiny and infinite numbers in operators, norms and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import prox
from jaxsac.prox import Groups, Level

INTEGERS = np.array([3, -2, 1, 0], np.int32)


@pytest.mark.parametrize(
    "call, right",
    [
        (lambda v: prox.prox_l1(v, 0.5), [2.5, -1.5, 0.5, 0]),
        (lambda v: prox.prox_elastic_net(v, 0.5, 0.5), np.array([2.5, -1.5, 0.5, 0]) / 1.5),
        (lambda v: prox.project_box(v, -0.5, 0.5), [0.5, -0.5, 0.5, 0]),
        (lambda v: prox.project_l1_ball(v, 2.5), [1.75, -0.75, 0, 0]),
        (lambda v: prox.project_l2_ball(v, 0.5), 0.5 * INTEGERS / np.sqrt(14)),
        (lambda v: prox.project_simplex(v, 1.5), [1.5, 0, 0, 0]),
        (
            lambda v: prox.prox_group(v, Groups.equal(2, 2), 0.5),
            INTEGERS * np.repeat(1 - 0.5 / np.array([13**0.5, 1]), 2),
        ),
        (lambda v: prox.group_norm(v, Groups.equal(2, 2), 0.5), 0.5 * (13**0.5 + 1)),
        (lambda v: prox.dual_group_norm(v, Groups.equal(2, 2), 0.5), 2 * 13**0.5),
    ],
)
def test_integers_do_not_cut_the_parameters(call, right):
    for v in (INTEGERS, INTEGERS.astype(float), INTEGERS.tolist(), jnp.asarray(INTEGERS)):
        np.testing.assert_allclose(call(v), right, rtol=1e-15)


@pytest.mark.parametrize("size", [1e-30, 3e-23, 1e-19, 1e-12, 1.0, 1e25])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0, 2.0])
def test_jacobians_of_tiny_and_huge_groups_in_float32(size, share):
    """I − t/‖v‖ (I − u u') and the second derivative from float64, in units of the group."""
    groups = Groups.equal(2, 3)
    unit = np.array([1.0, -2.0, 0.5, 3.0, 1.0, 1.0])
    direction = jnp.asarray([1.0, 0.3, -1.0, 2.0, 0.1, 0.7])

    def both(v, t, dtype):
        v, along = jnp.asarray(v, dtype), direction.astype(dtype)
        t = jnp.asarray(t, dtype)

        def slope(v):
            return jax.jacrev(lambda v: prox.prox_group(v, groups, t))(v)

        bent = jax.jvp(slope, (v,), (along * v[0],))[1]
        gradient = jax.grad(lambda v: prox.group_norm(v, groups, t) / t if share else v[0])(v)
        return slope(v), jax.jacfwd(lambda v: prox.prox_group(v, groups, t))(v), bent, gradient

    threshold = share * np.linalg.norm(unit[:3])
    found = both(np.float32(size) * unit.astype(np.float32), size * threshold, jnp.float32)
    right = both(unit, threshold, jnp.float64)
    for ours, theirs in zip(found, right, strict=True):
        if share != 1.0:  # the kink of the first group
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert np.isfinite(ours).all()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0])
def test_projections_and_penalties_have_finite_slopes_at_small_numbers(size):
    v = jnp.asarray([1.0, -2.0, 0.0, 2.0], jnp.float32) * np.float32(size)
    for project in (prox.project_l2_ball, prox.project_l1_ball):
        for radius in (0.0, 0.5 * size, 10 * size):
            jacobian = jax.jacrev(lambda v, r=radius, p=project: p(v, r))(v)
            right = jax.jacrev(lambda v, r=radius / size, p=project: p(v, r))(v / size)
            np.testing.assert_allclose(jacobian, right, atol=1e-6)
    penalty = prox.Penalty([Level(Groups.equal(2, 2), 1.0)], l1=0.1)
    bent = jax.jacfwd(penalty.gradient)(v)
    right = jax.jacfwd(penalty.gradient)(v.astype(float) / size)
    np.testing.assert_allclose(bent * np.float32(size), right, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda v, t: prox.prox_l1(v, t),
        lambda v, t: prox.prox_group(v, Groups.equal(2, 2), t),
        lambda v, t: prox.prox_tree(v, [Level(Groups.equal(2, 2), 1.0)], t),
        lambda v, t: prox.prox_elastic_net(v, t, t),
        lambda v, t: prox.project_l2_ball(v, 3.0 + t),
        lambda v, t: prox.project_l1_ball(v, 3.0 + t),
        lambda v, t: prox.project_simplex(v, 3.0 + t),
        lambda v, t: prox.dual_sparse_group_norm(v, Groups.equal(2, 2), 0.3 + t, 0.5),
        lambda v, t: prox.Penalty([Level(Groups.equal(2, 2), 1.0)], l1=0.3, ridge=0.2).prox(v, t),
    ],
)
@pytest.mark.parametrize("v", [[2.0, 1, 0, -3], [1.0, 1, 1, 1], [0.0, 0, 2, 2], [4.0, -4, 4, 0]])
def test_derivatives_at_zeros_integers_and_ties(call, v):
    """First and second against central differences, along directions that break no tie."""
    v, t = jnp.asarray(v), 0.37
    along = v * 0.5 + jnp.sign(v)  # what is equal stays so

    def scalar(s, t):
        return jnp.sum(jnp.cos(call(v + s * along, t)))

    for which in (0, 1):
        step = 1e-5 * np.eye(2)[which]

        def at(k, step=step):
            return k * step[0], t + k * step[1]

        first = (scalar(*at(1)) - scalar(*at(-1))) / 2e-5
        slope = jax.grad(scalar, which)
        np.testing.assert_allclose(slope(0.0, t), first, rtol=1e-6, atol=1e-8)
        second = (slope(*at(1)) - slope(*at(-1))) / 2e-5
        bent = jax.grad(slope, which)(0.0, t)
        np.testing.assert_allclose(bent, second, rtol=1e-6, atol=1e-8)


def test_without_a_threshold_the_prox_is_the_identity_and_so_is_its_slope():
    v, groups = jnp.asarray([0.0, 0.0, 1.0, 0.0]), Groups.equal(2, 2)
    for call in (prox.prox_l1, lambda v, t: prox.prox_group(v, groups, t)):
        np.testing.assert_array_equal(jax.jacrev(lambda v, call=call: call(v, 0.0))(v), np.eye(4))


def test_an_infinite_threshold_makes_zeros_with_slopes_of_zero():
    v, groups = jnp.asarray([1.0, 2.0, 1.0, 0.0]), Groups.equal(2, 2)
    threshold = jnp.asarray([jnp.inf, 0.5])
    np.testing.assert_array_equal(prox.prox_group(v, groups, threshold), [0, 0, 0.5, 0])
    jacobian = jax.jacrev(lambda v: prox.prox_group(v, groups, threshold))(v)
    np.testing.assert_allclose(jacobian, np.diag([0, 0, 1, 0.5]))
