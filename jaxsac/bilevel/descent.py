"""A lower-level solver without a step size to tune: limited-memory BFGS with a line search on
slopes, for `hypergradient` and `argmin`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac.bilevel.problem import norm

_MEMORY = 10
_TRIALS = 20
# A step is taken when it at least halves the slope along the direction (or overshoots it by as
# little).
_SLOPE = 0.5


class _State(NamedTuple):
    point: jax.Array
    gradient: jax.Array
    steps: jax.Array  # [memory, n], newest first; zero rows are unused
    changes: jax.Array
    started: jax.Array  # False before the gradient at the start is known


class _Trial(NamedTuple):
    length: jax.Array
    point: jax.Array
    gradient: jax.Array
    low: jax.Array
    low_slope: jax.Array
    high: jax.Array
    tries: jax.Array
    accepted: jax.Array


def minimise(
    gradient: Callable[[Any], Any],
    start: Any,
    *,
    tol: Any,
    max_steps: Any,
    certify: Callable[[jax.Array], Certificate],
) -> Outcome:
    """Find a zero of `gradient`, the gradient of a function bounded below, by L-BFGS (Nocedal &
    Wright, chapter 7).

    The line search looks at slopes alone: function values divided by σ² would have no digits
    left. `certify(gradient norm)` says how far a point is from the answer. `Outcome.state` is the
    last point, shaped like `start`.
    """
    flat, unravel = ravel_pytree(start)

    def field(point):
        return ravel_pytree(gradient(unravel(point)))[0]

    def step(state: _State) -> _State:
        direction = -_inverse_hessian_product(state)
        slope = jnp.vdot(direction, state.gradient)
        size = norm(state.gradient)
        fresh = jnp.all(state.changes[0] == 0)
        downhill = slope < 0
        direction = jnp.where(downhill, direction, -state.gradient)
        slope = jnp.where(downhill, slope, -(size**2))
        direction, slope = (
            jnp.where(state.started, direction, 0.0),
            jnp.where(state.started, slope, 0.0),
        )
        length = jnp.where(fresh, jnp.minimum(1.0, 1 / jnp.where(size > 0, size, 1.0)), 1.0).astype(
            flat.dtype
        )
        trial = _line_search(field, state, direction, slope, length)
        moved, change = trial.point - state.point, trial.gradient - state.gradient
        curved = jnp.vdot(moved, change) > jnp.finfo(flat.dtype).eps * jnp.linalg.norm(
            moved
        ) * jnp.linalg.norm(change)

        def push(rows, row):
            return jnp.where(curved, jnp.concatenate([row[None], rows[:-1]]), rows)

        return _State(
            trial.point,
            trial.gradient,
            push(state.steps, moved),
            push(state.changes, change),
            jnp.asarray(True),
        )

    def judge(state: _State) -> Certificate:
        # The first step goes nowhere and finds the gradient: one copy of `gradient` to compile, not
        # two.
        return certify(
            jnp.where(state.started, norm(state.gradient), jnp.finfo(flat.dtype).max / 4)
        )

    memory = jnp.zeros((_MEMORY, flat.size), flat.dtype)
    state = _State(flat, jnp.zeros_like(flat), memory, memory, jnp.asarray(False))
    outcome = iterate(step, judge, state, tol=tol, max_steps=max_steps, patience=30)
    return outcome._replace(state=unravel(outcome.state.point))


def _inverse_hessian_product(state: _State) -> jax.Array:
    """The two-loop recursion; zero rows of the memory do nothing."""
    products = jnp.sum(state.steps * state.changes, axis=1)
    inverses = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1.0), 0.0)

    def backward(vector, row):
        step, change, inverse = row
        weight = inverse * jnp.vdot(step, vector)
        return vector - weight * change, weight

    def forward(vector, row):
        step, change, inverse, weight = row
        return vector + (weight - inverse * jnp.vdot(change, vector)) * step, None

    vector, weights = _loops.scan(backward, state.gradient, (state.steps, state.changes, inverses))
    length = jnp.sum(state.changes[0] ** 2)
    vector = vector * jnp.where(length > 0, products[0] / jnp.where(length > 0, length, 1.0), 1.0)
    return _loops.scan(
        forward, vector, (state.steps, state.changes, inverses, weights), reverse=True
    )[0]


def _line_search(
    field, state: _State, direction: jax.Array, slope: jax.Array, length: jax.Array
) -> _Trial:
    """A length at which the slope along `direction` is at most half as steep as at the start, by
    bracketing and secants.
    """

    def attempt(trial: _Trial) -> _Trial:
        point = state.point + trial.length * direction
        gradient = field(point)
        here = jnp.vdot(gradient, direction)
        accepted = jnp.abs(here) <= -_SLOPE * slope
        short = here < 0  # still downhill: the length is too short; NaN counts as too long
        low = jnp.where(short, trial.length, trial.low)
        low_slope = jnp.where(short, here, trial.low_slope)
        high = jnp.where(short, trial.high, trial.length)
        secant = low + (high - low) * jnp.where(
            short, 0.5, jnp.clip(low_slope / (low_slope - here), 0.1, 0.9)
        )
        middle = jnp.where(jnp.isfinite(here), secant, low + 0.1 * (high - low))
        following = jnp.where(jnp.isinf(high), 3.0 * trial.length, middle)
        return _Trial(
            jnp.where(accepted, trial.length, following),
            point,
            gradient,
            low,
            low_slope,
            high,
            trial.tries + 1,
            accepted,
        )

    zero = jnp.zeros((), direction.dtype)
    start = _Trial(
        length,
        state.point,
        state.gradient,
        zero,
        slope,
        jnp.full((), jnp.inf, direction.dtype),
        jnp.int32(0),
        jnp.asarray(False),
    )
    return _loops.while_loop(
        lambda trial: ~trial.accepted & (trial.tries < _TRIALS), attempt, start
    )
