"""Newton's method without a Hessian and without a step size to tune: its steps are found by
conjugate gradients on differences of gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac._iterate import Certificate, Outcome, iterate
from jaxsac._linear import conjugate_gradient, dot
from jaxsac.bilevel.problem import Tree, add, dtype_of, norm, scale, size_of
from jaxsac.solution import Status

_TRIALS = 20
# A step is taken when it at least halves the slope along the direction (or overshoots it by as
# little), and the value falls by this share of what the slope promises: where a function runs flat,
# as that of a policy far out does, slopes alone vanish far from any minimum.
_SLOPE = 0.5
_FALL = 0.1
_PATIENCE = 20


class _State(NamedTuple):
    point: Tree
    value: jax.Array
    gradient: Tree
    num_steps: jax.Array  # products so far


class _Trial(NamedTuple):
    length: jax.Array
    point: Tree
    value: jax.Array
    gradient: Tree
    low: jax.Array
    low_slope: jax.Array
    high: jax.Array
    tries: jax.Array
    lower: jax.Array
    accepted: jax.Array


def minimise(
    value_and_gradient: Callable[[Tree], tuple[jax.Array, Tree]],
    product: Callable[[Tree, Tree], Tree],
    start: Tree,
    *,
    tol: Any,
    max_steps: Any,
    certify: Callable[[Tree, Tree], Certificate],
    forcing: Callable[[jax.Array], jax.Array],
    precondition: Callable[[Tree, Tree], Tree] | None = None,
) -> Outcome:
    """Find a minimum of a function bounded below by Newton's method with conjugate gradients
    (Nocedal & Wright, chapter 7).

    * `value_and_gradient(point)`: of the function; a value of NaN leaves the line search to slopes,
      where values have no digits.
    * `product(point, v)`: the Hessian there times v.
    * `certify(point, gradient)`: how far a point is from the answer.
    * `forcing(gradient norm)`: how well, relative, a Newton step is to be solved for.
    * `precondition(point, v)`: an approximate inverse of the Hessian there, times v.

    `Outcome.state` is the last point; `num_steps` counts products, `max_steps` at most.
    """
    dtype = dtype_of(start)
    flat = float(jnp.finfo(dtype).eps) ** (2 / 3)  # what differences of gradients resolve
    max_steps = jnp.asarray(max_steps, jnp.int32)
    enough = 2 * sum(leaf.size for leaf in jax.tree.leaves(start)) + 10

    def step(state: _State) -> _State:
        size = norm(state.gradient)
        unit = jnp.where(size > 0, size, 1.0)

        def steer(v: Tree) -> Tree:
            return v if precondition is None else precondition(state.point, v)

        found = conjugate_gradient(
            lambda v: product(state.point, v),
            scale(state.gradient, -1 / unit),
            tol=forcing(size),
            max_steps=jnp.clip(max_steps - state.num_steps, 0, enough),
            flat=flat,
            precondition=steer,
        )
        direction = scale(found.x, unit)
        slope = dot(direction, state.gradient)
        # the residual is where the curvature ended
        bent = (found.least < -4 * flat * found.most) | ~(slope < 0)
        whole = jnp.isfinite(norm(found.residual))  # else no product was: steepest descent
        left = jax.tree.map(
            lambda a, b: jnp.where(whole, a, -b / unit), found.residual, state.gradient
        )
        left = steer(left)
        direction = jax.tree.map(lambda a, b: jnp.where(bent, a, b), left, direction)
        slope = jnp.where(bent, dot(left, state.gradient), slope)
        far = norm(left)
        length = jnp.where(bent, size_of(state.point) / jnp.where(far > 0, far, 1.0), 1.0)
        trial = _line_search(value_and_gradient, state, direction, slope, length.astype(dtype))
        better = trial.accepted | trial.lower & (norm(trial.gradient) < size)
        point, value, new = jax.tree.map(
            lambda a, b: jnp.where(better, a, b),
            (trial.point, trial.value, trial.gradient),
            (state.point, state.value, state.gradient),
        )
        return _State(point, value, new, state.num_steps + jnp.maximum(found.num_steps, 1))

    def judge(state: _State) -> Certificate:
        return certify(state.point, state.gradient)

    first = _State(start, *value_and_gradient(start), jnp.int32(0))
    outcome = iterate(step, judge, first, tol=tol, max_steps=max_steps, patience=_PATIENCE)
    done = outcome.state.num_steps
    out = (outcome.status == Status.STALLED) & (done >= max_steps)
    status = jnp.where(out, jnp.int32(Status.MAX_STEPS), outcome.status)
    return Outcome(outcome.state.point, outcome.certificate, status, done)


def _line_search(
    field: Callable[[Tree], tuple[jax.Array, Tree]],
    state: _State,
    direction: Tree,
    slope: jax.Array,
    length: jax.Array,
) -> _Trial:
    """A length at which the slope along `direction` is at most half as steep as at the start, and
    the value lower, by bracketing and secants.
    """
    slack = 10 * float(jnp.finfo(slope.dtype).eps) * jnp.abs(state.value)

    def attempt(trial: _Trial) -> _Trial:
        point = add(state.point, direction, trial.length)
        value, gradient = field(point)
        here = dot(gradient, direction)
        promised = state.value + _FALL * trial.length * slope + slack
        lower = (value <= promised) | jnp.isnan(state.value)
        accepted = lower & (jnp.abs(here) <= -_SLOPE * slope)
        short = lower & (here < 0)  # still downhill: too short; NaN counts as too long
        low = jnp.where(short, trial.length, trial.low)
        low_slope = jnp.where(short, here, trial.low_slope)
        high = jnp.where(short, trial.high, trial.length)
        secant = low + (high - low) * jnp.where(
            short, 0.5, jnp.clip(low_slope / (low_slope - here), 0.1, 0.9)
        )
        middle = jnp.where(lower & jnp.isfinite(here), secant, low + 0.1 * (high - low))
        following = jnp.where(jnp.isinf(high), 3.0 * trial.length, middle)
        following = jnp.where(accepted, trial.length, following)
        tries = trial.tries + 1
        return _Trial(
            following, point, value, gradient, low, low_slope, high, tries, lower, accepted
        )

    zero, none = jnp.zeros((), slope.dtype), jnp.asarray(False)
    start = _Trial(
        length,
        *state[:3],
        zero,
        slope,
        jnp.full((), jnp.inf, slope.dtype),
        jnp.int32(0),
        none,
        none,
    )
    return _loops.while_loop(
        lambda trial: ~trial.accepted & (trial.tries < _TRIALS), attempt, start
    )
