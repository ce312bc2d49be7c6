"""How the exact gradient falls with the number of samples, at the rates of each theory: a quadratic
problem, and a leader in four rooms who sees episodes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.harness import NOT_RUN, Options
from jaxsac import bilevel
from jaxsac.problems import bilevel_rl


class Theory(NamedTuple):
    """Rates for T steps, and the p of samples ~ ε^−p that they imply for a gradient norm of ε."""

    name: str
    reduced: bool
    rate: float  # the power of T
    momentum: float
    implied: int


PLAIN = Theory("SGD", False, -1 / 2, 0, 4)  # Ghadimi and Lan 2013
STORM = Theory("variance reduced", True, -1 / 3, -2 / 3, 3)  # Cutkosky and Orabona 2019
CONVEX = Theory("SGD, strongly convex", False, -1, 0, 2)


def row_of(theory: Theory, horizons: Any, per_step: int, norms: np.ndarray) -> dict[str, Any]:
    """p with its standard error over seeds, from ‖gradient‖ [seeds, horizons], log-log."""
    slopes = np.asarray([np.polyfit(np.log(horizons), np.log(each), 1)[0] for each in norms])
    slope, error = slopes.mean(), slopes.std(ddof=1) / np.sqrt(len(slopes))
    momentum = f", momentum T^{theory.momentum:.2g}" if theory.reduced else ""
    return {
        "directions": theory.name,
        "rates": f"T^{theory.rate:.2g}{momentum}",
        "seeds": len(norms),
        "samples": f"{per_step * horizons[0]} to {per_step * horizons[-1]}",
        "gradient norm, first": float(norms[:, 0].mean()),
        "gradient norm, last": float(norms[:, -1].mean()),
        "implied p": theory.implied,
        "p": float(-1 / slope) if slope + 2 * error < 0 else "no fall that is certain",
        "standard error": float(error / slope**2) if slope + 2 * error < 0 else "-",
        "reached": bool(slope <= -1 / theory.implied + 2 * error),
    }


def quadratic(options: Options, dtype: Any) -> list[dict[str, Any]]:
    """A stochastic quadratic problem whose gradient is known."""
    horizons = (32, 64) if options.smoke else (1024, 4096, 16384, 65536)
    rng = np.random.default_rng(0)
    mixing = jnp.asarray(rng.normal(size=(8, 4)) / 2, dtype)
    target = jnp.asarray(rng.normal(size=8), dtype)

    def lower(x, y, noise):
        return 0.5 * jnp.sum((y - mixing @ x) ** 2) + noise[:8] @ y

    def upper(x, y, noise):
        return 0.5 * jnp.sum((y - target) ** 2) + 0.05 * jnp.sum(x**2) + noise[8:] @ y

    problem = bilevel.Problem(upper, lower)

    def size(x):
        return jnp.linalg.norm(mixing.T @ (mixing @ x - target) + 0.1 * x)

    rows = []
    cases = [(PLAIN, 1.0), (STORM, 1.0), (CONVEX, 20.0)][: 1 if options.smoke else None]
    for theory, first in options.progress(cases, "samples"):

        def one(key, T, theory=theory, first=first):
            rate = first * T**theory.rate
            inner, outer = optax.sgd(min(2 * rate, 0.3)), optax.sgd(min(rate, 0.2))
            method = bilevel.Method("forward", inner, outer, variance_reduction=theory.reduced)

            def advance(state, key):
                noise = jax.random.normal(key, (16,), dtype)
                momentum = T**theory.momentum
                new, _ = bilevel.step(
                    problem, state, method, sigma=0.01, batch=noise, momentum=momentum
                )
                return new, size(state.x)

            start = bilevel.init(problem, jnp.zeros(4, dtype), jnp.zeros(8, dtype), method)
            sizes = lax.scan(advance, start, jax.random.split(key, T))[1]
            return jnp.mean(sizes[T // 2 :])

        keys = jax.random.split(jax.random.key(1), 2 if options.smoke else 16)
        columns = [jax.jit(jax.vmap(lambda key, T=T: one(key, T)))(keys) for T in horizons]
        rows.append(row_of(theory, horizons, 1, np.stack(columns, axis=1)))
    return rows


def four_rooms(options: Options, dtype: Any) -> list[dict[str, Any]]:
    """A leader who sees one episode for each of two goals in a step. The follower answers at his
    best, as in HPGD; d is the leader's advantage over the temperature.
    """
    if dtype != jnp.float64:
        return [{"directions": f"{NOT_RUN}: nearly sure policies need float64"}]
    horizons, length = ((4, 8), 20) if options.smoke else ((32, 128, 512), 200)
    temperature, sigma = jnp.asarray(0.01, dtype), 1e-6
    rooms = bilevel_rl.four_rooms(dtype=dtype)
    mdp = bilevel.rl.MDP(rooms.transition, rooms.initial, rooms.discount)

    def pays(x):  # or charges that stop everything would be stationary
        return 0.01 * jnp.sum(x**2)

    def rewards(x):
        return rooms.leader_reward(x, 1.0)

    def best(x, state):
        return jax.vmap(
            lambda mdp, reward, state: bilevel.rl.soft_solve(mdp, reward, temperature, state=state)
        )(mdp, rooms.follower_reward(x), state)

    def sampled_leader(x, log_probs, uniforms):
        returns = jax.vmap(bilevel.rl.sampled_return)(uniforms, mdp, rewards(x), log_probs)
        return pays(x) - jnp.mean(returns)

    problem = bilevel.rl.sampled_policy_problem(
        lambda x: (mdp, rooms.follower_reward(x)), sampled_leader
    )

    def sampled(x, log_probs, uniforms):
        v = jax.vmap(bilevel.rl.policy_value)(mdp, rewards(x), log_probs)
        following = jnp.einsum("csat,ct->csa", mdp.transition, v)
        reached = rewards(x) + mdp.discount[:, None, None] * following
        d = (reached - v[:, :, None]) / temperature
        batch = uniforms, temperature
        assert problem.lower_difference is not None
        change = problem.lower_difference(x, log_probs, sigma * d, batch)[0][0]
        return jax.grad(problem.upper)(x, log_probs, batch) + change / sigma

    def exact(x):
        log_probs = best(x, zero).value.log_probs
        returns = jax.vmap(bilevel.rl.expected_return)(mdp, rewards(x), log_probs)
        return pays(x) - jnp.mean(returns)

    zero = jnp.zeros(rooms.initial.shape, dtype)
    even = jnp.full((2, 104, 4), jnp.log(0.25), dtype)
    size = jax.jit(jax.vmap(lambda x: jnp.linalg.norm(jax.grad(exact)(x))))
    together, seeds = horizons[0] // 2, 2 if options.smoke else 8  # steps in one program
    rows = []
    for theory in options.progress([PLAIN, STORM][: 1 if options.smoke else None], "rooms"):

        def advance(rate, weight, carry, key, theory=theory):
            x, state, last_x, last_policy, estimate = carry
            uniforms = jax.random.uniform(key, (2, 1, 2 * length), dtype)
            found = best(x, state)
            fresh = sampled(x, found.value.log_probs, uniforms)
            if theory.reduced:
                at_last = sampled(last_x, last_policy, uniforms)
                fresh += jnp.where(jnp.all(state == 0), 0.0, (1 - weight) * (estimate - at_last))
            return (x - rate * fresh, found.state, x, found.value.log_probs, fresh), x

        @jax.jit
        def steps(carry, keys, rate, weight, advance=advance):
            scan = functools.partial(lax.scan, functools.partial(advance, rate, weight))
            return jax.vmap(scan)(carry, keys)

        norms = []
        for T in horizons:
            x = jnp.zeros(105, dtype)
            start = x, zero, x, even, x
            carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (seeds, *leaf.shape)), start)
            keys = jax.vmap(lambda key, T=T: jax.random.split(key, T))(
                jax.random.split(jax.random.key(1), seeds)
            )
            sizes = []
            for first in range(0, T, together):
                rates = T**theory.rate, T**theory.momentum
                carry, xs = steps(carry, keys[:, first : first + together], *rates)
                if first >= T // 2:
                    sizes.append(size(xs[:, -1]))
            norms.append(np.mean(sizes, axis=0))
        rows.append(row_of(theory, horizons, 2, np.stack(norms, axis=1)))
    return rows
