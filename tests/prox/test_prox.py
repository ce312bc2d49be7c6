"""Proximal operators, penalties, dual norms and projections against their definitions, at every
scale, with gradients at the kinks.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from jaxsac import prox
from jaxsac.prox import Groups, Level

RNG = np.random.default_rng(0)
LABELS = np.asarray([2, 0, 0, 3, 2, 3, 0, 5, 5, 5, 3, 3])  # groups 1 and 4 are empty
LAYOUTS = {
    "equal": Groups.equal(4, 3),
    "padded": Groups.from_labels(LABELS),
    "segments": Groups.from_sizes([9, 0, 1, 1, 1] + [0] * 20),
}
every_layout = pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
V = RNG.normal(size=12)
INNER = Groups.equal(6, 2)
TREE = (
    Level(Groups.equal(12, 1), 0.1),
    Level(INNER, jnp.asarray(RNG.uniform(0.1, 0.5, 6))),
    Level(Groups.equal(2, 6), 0.4),
)

EVERYTHING = prox.Penalty(
    TREE[1:], l1=jnp.asarray(RNG.uniform(0, 0.5, 12)), ridge=0.7, nonnegative=True
)


def labels_of(groups):
    return np.asarray(groups.spread(jnp.arange(groups.num_groups, dtype=jnp.int32)))


def loop_norms(v, groups, labels=None):
    labels = labels_of(groups) if labels is None else labels
    return np.asarray([np.linalg.norm(v[labels == g]) for g in range(groups.num_groups)])


def test_layouts_are_what_their_names_say():
    assert LAYOUTS["equal"].labels is None
    assert LAYOUTS["padded"].members is not None
    assert LAYOUTS["segments"].members is None and LAYOUTS["segments"].labels is not None
    assert (
        Groups.from_sizes([3, 3]).labels is None
        and Groups.from_labels([0, 1, 0, 1]).labels is not None
    )


@every_layout
def test_sums_maxima_and_norms_per_group(groups):
    labels, v = labels_of(groups), jnp.asarray(V)
    members = [V[labels == g] for g in range(groups.num_groups)]
    np.testing.assert_allclose(groups.sum(v), [m.sum() for m in members], rtol=1e-13)
    np.testing.assert_allclose(groups.max(jnp.abs(v)), [np.abs(m).max(initial=0) for m in members])
    np.testing.assert_array_equal(groups.sizes, [len(m) for m in members])
    np.testing.assert_allclose(prox.group_norms(v, groups), loop_norms(V, groups), rtol=1e-14)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Groups.equal(0, 3), "num_groups must be ≥ 1"),
        (lambda: Groups.from_sizes([1, -1]), "sizes must be ≥ 0"),
        (lambda: Groups.from_sizes([]), "not empty"),
        (lambda: Groups.from_labels([0, 1], num_groups=1), r"labels must lie in \[0, 1\)"),
        (lambda: Groups.from_labels(np.asarray([0.0, 1.0])), "labels must be integers"),
        (lambda: jax.jit(Groups.from_labels)(jnp.asarray([0, 1])), "outside jit"),
        (lambda: LAYOUTS["equal"].sum(jnp.zeros(11)), r"values must have shape \[12\]"),
        (
            lambda: prox.prox_tree(
                jnp.zeros(12), [Level(Groups.equal(4, 3), 1.0), Level(Groups.equal(6, 2), 1.0)]
            ),
            "inside one group",
        ),
        (lambda: prox.prox_tree(jnp.zeros(12), []), "at least one Level"),
        (lambda: prox.project_box(jnp.zeros(2), 1.0, 0.0), "lower must be <= upper"),
        (lambda: prox.prox_l1(jnp.ones(2), -1.0), "threshold must be ≥ 0"),
        (lambda: prox.prox_elastic_net(jnp.ones(2), 0.1, -1.0), "l2 must be ≥ 0"),
        (lambda: prox.project_l2_ball(jnp.ones(2), -1.0), "radius must be ≥ 0"),
        (lambda: prox.project_l1_ball(jnp.ones(2), jnp.nan), "radius must be ≥ 0"),
        (lambda: prox.project_simplex(jnp.ones(2), -1.0), "total must be ≥ 0"),
        (
            lambda: prox.prox_tree(jnp.zeros(12), [Level(Groups.equal(4, 3), -1.0)]),
            r"levels\[0\].weights must be ≥ 0",
        ),
        (
            lambda: prox.dual_tree_norm(jnp.zeros(9), [Level(Groups.equal(4, 3), 1.0)]),
            r"levels\[0\].groups must have p = 9",
        ),
        (lambda: prox.Penalty(ridge=-1.0), "ridge must be ≥ 0"),
        (lambda: prox.Penalty(l1=[1.0, -1.0]), "l1 must be"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


PROXES = {
    "l1": (lambda v: prox.prox_l1(v, 0.4), lambda x: 0.4 * jnp.sum(jnp.abs(x))),
    "group": (
        lambda v: prox.prox_group(v, LAYOUTS["padded"], 0.7),
        lambda x: prox.group_norm(x, LAYOUTS["padded"], 0.7),
    ),
    "sparse group": (
        lambda v: prox.prox_sparse_group(v, LAYOUTS["equal"], 0.2, 0.5),
        lambda x: prox.sparse_group_norm(x, LAYOUTS["equal"], 0.2, 0.5),
    ),
    "tree": (lambda v: prox.prox_tree(v, TREE), lambda x: prox.tree_norm(x, TREE)),
    "everything": (
        lambda v: EVERYTHING.prox(v, 0.5, 0.8),
        lambda x: 0.8 * jnp.where(jnp.all(x >= 0), EVERYTHING.value(x, 0.5), jnp.inf),
    ),
    "elastic net": (
        lambda v: prox.prox_elastic_net(v, 0.3, 0.8),
        lambda x: 0.3 * jnp.sum(jnp.abs(x)) + 0.4 * jnp.sum(x**2),
    ),
}


@pytest.mark.parametrize("name", PROXES)
def test_prox_minimises_its_objective(name):
    """No point of a dense cloud around it is better, and the optimality gap by convexity is zero: a
    subgradient exists.
    """
    operator, penalty = PROXES[name]
    v = jnp.asarray(V)
    found = operator(v)
    assert 0 < np.count_nonzero(found) < 12

    def objective(x):
        return 0.5 * jnp.sum((x - v) ** 2) + penalty(x)

    cloud = np.concatenate(
        [
            np.asarray(found)
            + size * RNG.normal(size=(300, 12)) * (RNG.uniform(size=(300, 12)) < 0.5)
            for size in (1e-4, 1e-2, 1.0)
        ]
        + [np.asarray(found) * np.linspace(0.9, 1.1, 21)[:, None]]
    )
    values = jax.vmap(objective)(jnp.asarray(cloud))
    assert float(jnp.min(values)) >= float(objective(found)) - 1e-14
    # strong convexity: every x has objective(x) >= objective(found) + 1/2 |x - found|^2
    assert np.all(
        values - objective(found) >= 0.5 * np.sum((cloud - np.asarray(found)) ** 2, axis=1) - 1e-12
    )


dual_sparse_group_norm = jax.jit(lambda v, groups: prox.dual_sparse_group_norm(v, groups, 0.3, 0.7))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@every_layout
def test_float32_is_right_at_extreme_scales(groups, scale):
    v = jnp.asarray(V * scale, jnp.float32)
    exact = np.asarray(v, np.float64)
    norms = loop_norms(exact, groups)
    np.testing.assert_allclose(prox.group_norms(v, groups), norms, rtol=1e-6)
    shrunk = prox.prox_group(v, groups, np.float32(scale))
    factors = np.maximum(0, 1 - scale / np.where(norms > 0, norms, np.inf))
    np.testing.assert_allclose(
        shrunk, exact * factors[labels_of(groups)], rtol=1e-5, atol=1e-6 * scale
    )
    slope = jax.jit(jax.grad(lambda u: jnp.sum(prox.group_norms(u, groups))))(v)
    np.testing.assert_allclose(
        slope, exact / np.where(norms > 0, norms, 1)[labels_of(groups)], rtol=1e-5
    )
    np.testing.assert_allclose(prox.vector_norm(v), np.linalg.norm(exact), rtol=1e-6)
    np.testing.assert_allclose(
        dual_sparse_group_norm(v, groups) / scale, dual_by_bisection(V, groups), rtol=1e-5
    )


def dual_by_bisection(v, groups, l1=0.3, group=0.7):
    low, high = 0.0, np.abs(v).sum() / min(l1, group)
    labels = labels_of(groups)
    for _ in range(200):
        t = 0.5 * (low + high)
        left = np.maximum(np.abs(v) - t * l1, 0)
        inside = np.all(loop_norms(left, groups, labels) <= t * group)
        low, high = (low, t) if inside else (t, high)
    return high


@every_layout
def test_gradients_at_zero_and_at_the_kink_are_finite(groups):
    zero = jnp.zeros(12)
    for function in (
        lambda v: jnp.sum(prox.prox_group(v, groups, 0.5)),
        lambda v: jnp.sum(prox.group_norms(v, groups)),
        lambda v: prox.dual_sparse_group_norm(v, groups, 0.3, 0.7),
        prox.vector_norm,
        lambda v: jnp.sum(prox.project_l2_ball(v, 1.0)),
    ):
        assert np.all(np.isfinite(jax.jit(jax.grad(function))(zero)))
    np.testing.assert_array_equal(
        jax.jacobian(lambda v: prox.prox_group(v, groups, 0.5))(zero), np.zeros((12, 12))
    )
    # without a penalty the operator is the identity, and so is its derivative at 0
    np.testing.assert_array_equal(
        jax.jacobian(lambda v: prox.prox_group(v, groups, 0.0))(zero), np.eye(12)
    )
    unit = jnp.zeros(12).at[0].set(1.0)  # norm exactly at the threshold
    assert np.all(np.isfinite(jax.jacobian(lambda v: prox.prox_group(v, groups, 1.0))(unit)))


PENALTIES = {
    "everything": EVERYTHING,
    "tree": prox.Penalty(TREE),
    "sparse group": prox.Penalty([Level(LAYOUTS["padded"], 0.5)], l1=0.2),
    "group": prox.Penalty([Level(LAYOUTS["padded"], 3.0)]),
    "non-negative": prox.Penalty(
        [Level(LAYOUTS["equal"], jnp.asarray([0.5, 0.0, 1.0, 2.0]))], l1=0.1, nonnegative=True
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_one_convex_function(name):
    """The dual norm is where the prox vanishes, the bound is above it, and `violation` is zero
    where the prox puts its minimiser.
    """
    penalty, v = PENALTIES[name], jnp.asarray(V)
    prox_of = jax.jit(lambda lam: penalty.prox(v, lam))
    t, bound = jax.jit(lambda v: (penalty.dual_norm(v), penalty.dual_norm_bound(v)))(v)
    assert not np.any(prox_of(t * (1 + 1e-12))) and np.any(prox_of(t * (1 - 1e-9)))
    assert t * (1 - 1e-12) <= bound <= 3 * t + np.abs(V).max() * 10
    found = prox_of(0.4)
    assert 0 < np.count_nonzero(found) < 12
    # found minimises penalty − (v − found)'x, and half of it does not
    np.testing.assert_allclose(penalty.violation(found, v - found, 0.4), np.zeros(12), atol=1e-14)
    assert np.abs(penalty.violation(0.5 * found, v - 0.5 * found, 0.4)).max() > 1e-3
    np.testing.assert_array_equal(penalty.pinned(found, 0.4), found == 0)
    moving = ~penalty.pinned(found, 0.4)
    slope = jax.grad(lambda x: penalty.value(jnp.where(moving, x, 0.0), 0.4))(found)
    np.testing.assert_allclose(
        jnp.where(moving, penalty.gradient(found, 0.4), 0.0), slope, rtol=1e-12, atol=1e-15
    )
    assert not np.any(penalty.unpenalised(12))


def test_nan_stays_in_its_group():
    v = jnp.asarray(V).at[4].set(jnp.nan)
    out = prox.prox_group(v, Groups.equal(4, 3), 0.5)
    assert np.isnan(out[3:6]).all() and np.isfinite(np.delete(out, [3, 4, 5])).all()
    assert np.isnan(prox.dual_tree_norm(v, TREE)) and np.isnan(prox.vector_norm(v))


@pytest.mark.parametrize(
    "levels", [TREE, TREE[1:], TREE[2:]], ids=["3 levels", "2 levels", "1 level"]
)
def test_tree_dual_norm_is_where_the_prox_vanishes(levels):
    v = jnp.asarray(RNG.normal(size=12))
    prox_of = jax.jit(lambda lam: prox.prox_tree(v, levels, lam))
    t = jax.jit(lambda v: prox.dual_tree_norm(v, levels))(v)
    assert not np.any(prox_of(t * (1 + 1e-12))) and np.any(prox_of(t * (1 - 1e-9)))
    # the definition: v'x <= dual(v) Omega(x), with equality at the limit of the prox direction
    cloud = jnp.asarray(RNG.normal(size=(500, 12)) * (RNG.uniform(size=(500, 12)) < 0.4))
    assert np.all(
        cloud @ v <= t * jax.vmap(lambda x: prox.tree_norm(x, levels))(cloud) * (1 + 1e-12)
    )
    direction = prox_of(t * (1 - 1e-6))
    np.testing.assert_allclose(direction @ v, t * prox.tree_norm(direction, levels), rtol=1e-4)


@pytest.mark.slow
def test_sparse_group_dual_norm_in_a_batch_and_its_gradient():
    groups = LAYOUTS["padded"]
    batch = jnp.asarray(RNG.normal(size=(20, 12)))
    dual = jax.jit(jax.vmap(lambda v: prox.dual_sparse_group_norm(v, groups, 0.3, 0.7)))
    np.testing.assert_allclose(
        dual(batch), [dual_by_bisection(np.asarray(v), groups) for v in batch], rtol=1e-12
    )

    @jax.jit
    def norm(v, l1):
        return prox.dual_sparse_group_norm(v, groups, l1, 0.7)

    chex.assert_numerical_grads(lambda v: norm(v, 0.3), (batch[0],), order=1, rtol=1e-6, atol=1e-6)
    chex.assert_numerical_grads(
        lambda l1: norm(batch[0], l1), (jnp.asarray(0.3),), order=1, rtol=1e-6, atol=1e-6
    )


def test_dual_norms_with_weights_of_zero():
    groups, v = LAYOUTS["equal"], jnp.asarray(V)
    weights = jnp.asarray([1.0, 0.0, 2.0, 1.0])
    assert prox.dual_group_norm(v, groups, weights) == np.inf
    cleared = v.at[3:6].set(0.0)
    np.testing.assert_allclose(
        prox.dual_group_norm(cleared, groups, weights),
        np.max(loop_norms(np.asarray(cleared), groups)[[0, 2, 3]] / [1, 2, 1]),
    )
    assert prox.dual_sparse_group_norm(v, groups, 0.0, weights) == np.inf
    np.testing.assert_allclose(
        prox.dual_sparse_group_norm(v, groups, 1.0, 0.0), np.abs(V).max(), rtol=1e-12
    )
    np.testing.assert_allclose(
        prox.dual_sparse_group_norm(v, groups, 0.0, 1.0), loop_norms(V, groups).max(), rtol=1e-12
    )


def by_quadratic_programme(v, constraints, bounds=None):
    found = minimize(
        lambda x: 0.5 * np.sum((x - v) ** 2),
        np.full(v.size, 0.1),
        jac=lambda x: x - v,
        method="SLSQP",
        constraints=constraints,
        bounds=bounds,
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("seed", range(5))
def test_projections_match_a_quadratic_programme(seed):
    v = np.random.default_rng(seed).normal(size=6) * 2
    simplex = by_quadratic_programme(
        v, [{"type": "eq", "fun": lambda x: x.sum() - 1.5}], bounds=[(0, None)] * 6
    )
    np.testing.assert_allclose(prox.project_simplex(jnp.asarray(v), 1.5), simplex, atol=1e-6)
    doubled = by_quadratic_programme(
        np.concatenate([v, -v]),
        [{"type": "ineq", "fun": lambda x: 1.2 - x.sum()}],
        bounds=[(0, None)] * 12,
    )  # x = x+ - x-: the same projection up to the factor of the doubled distance
    np.testing.assert_allclose(
        prox.project_l1_ball(jnp.asarray(v), 1.2), doubled[:6] - doubled[6:], atol=1e-6
    )
    np.testing.assert_allclose(
        prox.project_l2_ball(jnp.asarray(v), 0.7), v * min(1, 0.7 / np.linalg.norm(v)), rtol=1e-13
    )
    np.testing.assert_array_equal(prox.project_box(jnp.asarray(v), -1.0, 0.5), np.clip(v, -1, 0.5))


def test_projections_leave_members_alone_and_take_extremes():
    inside = jnp.asarray([0.2, -0.1, 0.3])
    np.testing.assert_array_equal(prox.project_l1_ball(inside, 1.0), inside)
    np.testing.assert_array_equal(prox.project_l2_ball(inside, 1.0), inside)
    np.testing.assert_allclose(
        prox.project_simplex(jnp.asarray([0.2, 0.5, 0.3])), [0.2, 0.5, 0.3], rtol=1e-15
    )
    np.testing.assert_array_equal(prox.project_l1_ball(inside, 0.0), np.zeros(3))
    huge = jnp.asarray([1e30, -1e30, 5e29], jnp.float32)
    np.testing.assert_allclose(prox.project_simplex(huge), [1.0, 0.0, 0.0])
    np.testing.assert_allclose(prox.vector_norm(prox.project_l2_ball(huge, 2.0)), 2.0, rtol=1e-6)
    assert np.isfinite(jax.jacobian(lambda v: prox.project_l1_ball(v, 0.5))(inside)).all()


def test_optax_step_is_proximal_gradient_descent():
    groups = Groups.equal(4, 3)
    rng = np.random.default_rng(1)
    A, y = jnp.asarray(rng.normal(size=(20, 12))), jnp.asarray(rng.normal(size=20))
    rate, lam = 0.02, 0.6 * float(prox.dual_group_norm(y @ A, groups))

    def gradient(b):
        return (A @ b - y) @ A

    optimiser = optax.chain(
        optax.sgd(rate), prox.proximal(lambda b, step: prox.prox_group(b, groups, lam * step), rate)
    )
    params, by_hand = jnp.ones(12), jnp.ones(12)
    state = optimiser.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimiser.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(300):
        params, state = step(params, state)
        by_hand = prox.prox_group(by_hand - rate * gradient(by_hand), groups, lam * rate)
    np.testing.assert_allclose(params, by_hand, atol=1e-12)
    assert 0 < np.count_nonzero(prox.group_norms(params, groups)) < 4
    assert prox.dual_group_norm(gradient(params), groups) <= lam * (1 + 1e-6)
    with pytest.raises(ValueError, match="needs the parameters"):
        prox.proximal(lambda b, step: b, rate).update(params, prox.ProximalState(jnp.int32(0)))
    schedule = prox.proximal(lambda b, step: b - step, optax.linear_schedule(1.0, 0.0, 2))
    updates, later = schedule.update(jnp.zeros(2), schedule.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(updates, [-1.0, -1.0])
    np.testing.assert_allclose(schedule.update(jnp.zeros(2), later, jnp.zeros(2))[0], [-0.5, -0.5])
