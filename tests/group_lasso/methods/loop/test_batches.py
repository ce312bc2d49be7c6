"""Batches: lanes in step, lanes one after another, batches of batches; each lane's answer is the
one that it has alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, Status, _loops, group_lasso
from jaxsac._iterate import iterate_lanes
from jaxsac.group_lasso.methods.loop import programs as compiled, rounds as compiled_working_set
from jaxsac.prox import Penalty

T, G, Q = 40, 12, 3
GROUPS = Groups.equal(G, Q)
RNG = np.random.default_rng(0)
XS = jnp.asarray(RNG.normal(size=(4, T, G * Q)))
COEF = jnp.asarray(np.r_[RNG.normal(size=2 * Q), np.zeros((G - 2) * Q)])
YS = XS @ COEF + 0.5 * jnp.asarray(RNG.normal(size=(4, T)))
LAMS = 0.6 * jnp.asarray([1.0, 0.3, 0.1, 0.03])
FOLDS = jnp.asarray(1.5 * (np.arange(T)[None, :] % 3 != np.arange(3)[:, None]))


def solve(X, y, lam, sample_weight=None):
    return group_lasso.solve(
        X, y, GROUPS, lam, sample_weight=sample_weight, intercept=True, tol=1e-9, max_steps=50_000
    )


@functools.cache
def alone(k, at, fold=None):
    """The answer for problem k at a lam, by the plain loop."""
    return jax.jit(solve)(XS[k], YS[k], LAMS[at], None if fold is None else FOLDS[fold]).check()


@functools.cache
def shifted(k):
    """The answer where the offset is that of problem k from problem 0."""
    return jax.jit(solve)(XS[0], YS[0] - (YS[k] - YS[0]), LAMS[2]).check()


def is_lane(lane, alone):
    assert lane.status == Status.CONVERGED and lane.stats["gap"] <= 1e-9 * lane.stats["scale"]
    np.testing.assert_allclose(
        lane.stats["objective"], alone.stats["objective"], atol=2e-9 * float(alone.stats["scale"])
    )
    np.testing.assert_allclose(lane.value.coef, alone.value.coef, atol=2e-4)


def pick(tree, *at):
    return jax.tree.map(lambda leaf: leaf[at], tree)


@pytest.fixture(autouse=True)
def _forget_what_was_patched():
    yield
    jax.clear_caches()  # traces made under a patch


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["steps", "rounds"])
def rounds(request, monkeypatch):
    """Whether working-set rounds precede the loop, although the problems are tiny."""
    if request.param:
        for k in range(4):
            alone(k, k), alone(0, k), shifted(k)
        monkeypatch.setattr(compiled_working_set, "_WORTHWHILE", 1)
        jax.clear_caches()
    return request.param


def test_lanes_of_one_design(rounds):
    batch = jax.jit(jax.vmap(lambda lam: solve(XS[0], YS[0], lam)))(LAMS)
    for k in range(4):
        is_lane(pick(batch, k), alone(0, k))
    assert (np.max(batch.stats["num_steps"]) <= compiled_working_set._ROUNDS) == rounds


@pytest.mark.slow
def test_a_batch_over_the_offset_takes_rounds_too(rounds):
    batch = jax.jit(
        jax.vmap(
            lambda offset: group_lasso.solve(
                XS[0], YS[0], GROUPS, LAMS[2], offset=offset, intercept=True, tol=1e-9
            )
        )
    )(YS - YS[:1])
    for k in range(4):
        is_lane(pick(batch, k), shifted(k))
    assert (np.max(batch.stats["num_steps"]) <= compiled_working_set._ROUNDS) == rounds


@pytest.mark.slow
def test_more_lanes_than_places():
    """Forty lanes that end at very different times: gathered, moved to fewer places, and put back
    where they belong.
    """
    lams = jnp.asarray(np.random.default_rng(1).permutation(np.geomspace(0.6, 0.003, 40)))
    one = jax.jit(lambda lam: solve(XS[0], YS[0], lam))
    batch = jax.jit(jax.vmap(one))(lams)
    assert np.max(batch.stats["num_steps"]) > 5 * np.min(batch.stats["num_steps"])
    for k, lam in enumerate(lams):
        is_lane(pick(batch, k), one(lam))


@pytest.mark.slow
def test_lanes_with_a_design_each(rounds):
    batch = jax.jit(jax.vmap(solve))(XS, YS, LAMS)
    for k in range(4):
        is_lane(pick(batch, k), alone(k, k))


def elsewhere(monkeypatch):
    """As on other platforms."""
    monkeypatch.setattr(
        _loops, "platform_dependent", lambda *operands, cpu, default: default(*operands)
    )
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("folds_first", [True, False])
def test_a_batch_of_batches_is_one_batch(folds_first, monkeypatch):
    sizes = []

    def watched(step, certify, lanes, states, **keywords):
        sizes.append(states.momentum.size)
        return iterate_lanes(step, certify, lanes, states, **keywords)

    monkeypatch.setattr(compiled, "iterate_lanes", watched)
    jax.clear_caches()

    def grid(X):
        def row(weight):
            return jax.vmap(lambda lam: solve(X, YS[0], lam, weight))(LAMS)

        def column(lam):
            return jax.vmap(lambda weight: solve(X, YS[0], lam, weight))(FOLDS)

        return jax.vmap(row)(FOLDS) if folds_first else jax.vmap(column, out_axes=1)(LAMS)

    batch = jax.jit(grid)(XS[0])
    assert batch.status.shape == (3, 4)
    for fold in range(3):
        for k in range(4):
            is_lane(pick(batch, fold, k), alone(0, k, fold))
    assert sizes[-1] == 12  # the loop that runs has them all on one axis


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [True, False])
def test_batches_with_a_design_each(cpu, monkeypatch):
    if not cpu:
        elsewhere(monkeypatch)
    batch = jax.jit(jax.vmap(lambda X, y: jax.vmap(lambda lam: solve(X, y, lam))(LAMS)))(XS, YS)
    for k in range(4):
        for at in (0, 3):
            is_lane(pick(batch, k, at), alone(k, at))


@pytest.mark.slow
@pytest.mark.parametrize("each", [False, True], ids=["one design", "a design each"])
def test_lanes_in_step_need_no_rounds(each, monkeypatch):
    """What other platforms run where CPUs take the lanes one after another."""
    plain = [alone(k if each else 0, k) for k in range(4)]
    monkeypatch.setattr(compiled_working_set, "_WORTHWHILE", 1)
    elsewhere(monkeypatch)

    def one(X, y, lam):
        problem = group_lasso.Problem(X, y, GROUPS, "squared", None, None, None, True).at(lam)
        setup = compiled.set_up(problem, measured=False)
        return compiled.run(
            problem, setup, jnp.asarray(1e-9), jnp.int32(50_000), compiled.start(setup.null)
        )

    ended = jax.jit(jax.vmap(one, in_axes=(0, 0, 0) if each else (None, None, 0)))(
        *((XS, YS) if each else (XS[0], YS[0])), LAMS
    )
    assert (
        np.all(ended.status == Status.CONVERGED)
        and np.max(ended.num_steps) > compiled_working_set._ROUNDS
    )
    for k in range(4):
        np.testing.assert_allclose(ended.state.coef[k], plain[k].value.coef, atol=2e-4)


@pytest.mark.slow
def test_derivatives_of_a_batch_are_those_of_its_lanes():
    def one(lam):
        return jnp.sum(jnp.sin(solve(XS[0], YS[0], lam).value.coef))

    slopes = jax.jit(jax.grad(lambda lams: jnp.sum(jax.vmap(one)(lams))))(LAMS)
    slope = jax.jit(jax.grad(one))
    np.testing.assert_allclose(slopes, jnp.stack([slope(lam) for lam in LAMS]), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(one)))(LAMS), slopes, rtol=1e-6)


@pytest.mark.parametrize("each", [False, True], ids=["one design", "a design each"])
def test_a_batch_of_no_lanes_is_empty(each, rounds):
    axes = (0 if each else None, None, 0)
    batch = jax.vmap(lambda X, y, lam: solve(X, y, lam), in_axes=axes)(
        XS[:0] if each else XS[0], YS[0], LAMS[:0]
    )
    assert batch.value.coef.shape == (0, G * Q) and batch.status.shape == (0,)


def test_a_lane_of_nan_ends_alone():
    batch = jax.jit(jax.vmap(lambda y, lam: solve(XS[0], y, lam)))
    sick, well = batch(YS.at[1, 3].set(jnp.nan), LAMS), batch(YS, LAMS)
    assert sick.status.tolist() == [
        Status.CONVERGED,
        Status.NONFINITE,
        Status.CONVERGED,
        Status.CONVERGED,
    ]
    np.testing.assert_array_equal(
        np.delete(sick.value.coef, 1, axis=0), np.delete(well.value.coef, 1, axis=0)
    )


def test_limits_and_tolerances_differ_by_lane():
    def one(tol, max_steps, lam):
        return group_lasso.solve(
            XS[0], YS[0], GROUPS, lam, tol=tol, max_steps=max_steps, penalty=Penalty(l1=0.01)
        )

    batch = jax.jit(jax.vmap(one))(
        jnp.asarray([1e-6, 1e-12, 1e-30, 1e-12]), jnp.asarray([5000, 20, 5000, 5000]), LAMS
    )
    assert batch.status.tolist() == [
        Status.CONVERGED,
        Status.MAX_STEPS,
        Status.STALLED,
        Status.CONVERGED,
    ]
    assert batch.stats["num_steps"][1] == 20
