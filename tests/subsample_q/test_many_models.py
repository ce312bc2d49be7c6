"""The certificate on many small models at once: exact bounds of every kind, and the coverage of the
intervals where losses are rare.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import subsample_q as sq
from jaxsac.subsample_q.trust.gap import rollout_losses, upper_limit

pytestmark = pytest.mark.slow
MODELS = 250  # of each kind
ENDS = {
    "allowed": np.array([[True, False], [True, True], [True, True]]),
    "terminal": np.array([False, False, True]),
}


def draws(seed, *shapes, number=MODELS):
    """Transitions for shapes (..., S, "law") and rewards for the others, of many models."""
    generator = np.random.default_rng(seed)
    return [
        generator.dirichlet(np.ones(shape[-2]), (number, *shape[:-2]))
        if shape[-1] == "law"
        else generator.normal(size=(number, *shape))
        for shape in shapes
    ]


def plain(*arrays):
    return sq.Model(*arrays, 0.9)


def ending(*arrays):
    return sq.Model(*arrays, 0.95, **ENDS)


def typed(*arrays):
    return sq.TypedModel(*arrays, np.array([0.3, 0.7]), 0.9)


def acting(*arrays):
    return sq.LocalActionModel(*arrays, 0.9)


KINDS = [
    (plain, [(2, 2, 2, "law"), (2, 3, 3, "law"), (2, 2), (2, 3)], (1, 2, 3, 4)),
    (ending, [(3, 2, 3, "law"), (3, 2, 2, 2, "law"), (3, 2), (3, 2, 2)], (1, 2, 5)),
    (typed, [(2, 2, 2, "law"), (2, 2, 2, 2, "law"), (2, 2), (2, 2, 2)], ((1, 1), (1, 2), (2, 3))),
    (acting, [(2, 2, 2, "law"), (2, 2, 2, 2, "law"), (2, 2), (2, 2, 2)], (1, 2, 4)),
]


@pytest.mark.parametrize("make,shapes,ks", KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_exact_bounds_hold_in_1000_models(make, shapes, ks):
    """U_k ≥ V_n*, U_k does not rise in k, nothing that is executed beats V_n*: at every state."""

    @jax.jit
    @jax.vmap
    def of_one(arrays):
        model = make(*arrays)
        tables = [sq.solve(model, k, tol=1e-10).value for k in ks]
        best = tables[-1]
        states = jnp.arange(best.value.shape[0], dtype=jnp.int32)

        def everywhere(table):
            def at(g, counts):
                return sq.upper_bound(table, (g, counts))

            return jax.vmap(lambda g: jax.vmap(lambda h: at(g, h))(best.histograms))(states)

        values = [] if make is acting else [sq.evaluate(model, t, ks[-1]).value for t in tables]
        return best.value, [everywhere(t) for t in tables], [value.value for value in values]

    best, uppers, executed = jax.tree.map(np.asarray, of_one(draws(1, *shapes)))
    slack = 1e-5 * np.abs(best).max()
    assert all(np.all(upper >= best - 1e-8) for upper in uppers)
    assert all(np.all(b <= a + 1e-7) for a, b in itertools.pairwise(uppers))
    assert all(np.all(value <= best + slack) for value in executed)
    assert np.max(uppers[0] - best) > 1e3 * slack  # there is something to be wrong about


@pytest.mark.parametrize("count", [64, 256])
def test_the_bounded_interval_covers_rare_losses_in_200_models(count):
    """A state entered with a chance of 1e-1 to 1e-4, where a wrong guess of the majority costs 10
    to 1,000: coverage at 95 %, and the width of the upper end beside that of a perfect normal one
    plus b ln(1/δ) / R.
    """
    number, n, k, horizon, delta = 200, 6, 1, 88, 0.05
    generator = np.random.default_rng(0)
    chance, cost = 10 ** generator.uniform(-4, -1, number), 10 ** generator.uniform(1, 3, number)
    laws = draws(3, (2, 2, 2, "law"), number=number)[0]

    def of_one(key, chance, cost, law):
        enter = jnp.stack([1 - chance, chance])
        transition = jnp.stack([enter, jnp.array([0.5, 0.5])])[:, None].repeat(2, axis=1)
        local = law[:, None].repeat(2, axis=1)
        wrong = jnp.stack([jnp.zeros((2, 2)), -cost * (1 - jnp.eye(2))])
        model = sq.Model(transition, local, jnp.zeros((2, 2)), wrong, 0.9)
        table, upper = sq.solve(model, k).value, sq.solve(model, n).value
        state = 0, jnp.array([3, 3], jnp.int32)
        exact = sq.certify(key, model, table, n, state, upper=upper, interval="exact")
        losses = rollout_losses(key, model, table, upper, n, state, count, horizon)
        limits = [
            upper_limit(losses, jnp.asarray(1 - delta), interval=kind)
            for kind in ("bounded", "normal")
        ]
        most = jnp.max(jnp.where(jnp.isfinite(upper.q), upper.value[..., None] - upper.q, 0)) * 10
        return exact.gap, losses, jnp.stack(limits), most

    keys = jax.random.split(jax.random.key(5), number)
    gap, losses, (bounded, normal), most = jax.tree.map(
        np.asarray, jax.jit(jax.vmap(of_one, out_axes=(0, 0, 1, 0)))(keys, chance, cost, laws)
    )
    covered = np.mean(bounded + losses.tail >= gap)
    students = np.mean(normal + losses.tail >= gap)
    goal, deviation = np.log(1 / delta), losses.sums.std(axis=1, ddof=1)
    ideal = deviation * np.sqrt(2 * goal / count) + most * goal / count
    width = (bounded - losses.sums.mean(axis=1)) / ideal
    print(f"R = {count}: bounded covers {covered:.3f}, normal {students:.3f}; width / ideal at most"
          f" {width.max():.2f}, median {np.median(width):.2f}")  # fmt: skip
    assert covered >= 1 - delta
    assert students < covered
    assert width.max() <= 1.5
