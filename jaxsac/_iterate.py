"""The one loop: run steps, certify now and then, and say how it ended."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac.solution import Status

State = TypeVar("State")


class Certificate(NamedTuple):
    """Proof of how far a state is from the answer, recomputed from scratch: three scalars of one dtype.

    `error` bounds the distance (a duality gap, a Bellman residual bound, a stationarity measure), `rounding` bounds what floating-point
    arithmetic may have hidden in it, and `scale` is the size that makes `tol` relative.
    """

    error: jax.Array
    rounding: jax.Array
    scale: jax.Array


class Outcome(NamedTuple):
    """Where a loop ended: the last state, its certificate, a `Status` code and the number of steps taken."""

    state: Any
    certificate: Certificate
    status: jax.Array
    num_steps: jax.Array


class _Carry(NamedTuple):
    state: Any
    certificate: Certificate
    best_error: jax.Array
    checks_since_best: jax.Array
    status: jax.Array
    num_steps: jax.Array


_RUNNING = jnp.iinfo(jnp.int32).max  # no Status has this code, and it never leaves the loop


def iterate(
    step: Callable[[State], State],
    certify: Callable[[State], Certificate],
    state: State,
    *,
    tol: jax.Array,
    max_steps: jax.Array | int,
    check_every: int = 1,
    patience: int = 20,
) -> Outcome:
    """Apply `step` until `certify` proves the tolerance, the step limit comes, a non-finite certificate appears or progress ends.

    `certify` runs on the first state (a good warm start takes no step) and after every `check_every` steps. The loop ends as

    * CONVERGED  when error + rounding ≤ tol · scale,
    * NONFINITE  when error, rounding or scale is NaN or infinite,
    * STALLED    when error ≤ rounding without convergence, or no check out of `patience` improved the least error by 0.1 %,
    * MAX_STEPS  otherwise, when `max_steps` are done (a multiple of `check_every`, except the last stretch).

    Batch with `jax.vmap`: finished lanes keep their state bitwise while others go on. `tol` and `max_steps` may be traced.
    """
    max_steps = jnp.asarray(max_steps, jnp.int32)

    def judge(certificate: Certificate, best_error: jax.Array, checks_since_best: jax.Array, num_steps: jax.Array) -> jax.Array:
        error, rounding, scale = certificate
        finite = jnp.isfinite(error) & jnp.isfinite(rounding) & jnp.isfinite(scale)
        converged = error + rounding <= tol * scale
        stalled = (error <= rounding) | (checks_since_best >= patience)
        status = jnp.where(num_steps >= max_steps, jnp.int32(Status.MAX_STEPS), jnp.int32(_RUNNING))
        status = jnp.where(stalled, jnp.int32(Status.STALLED), status)
        status = jnp.where(converged, jnp.int32(Status.CONVERGED), status)
        return jnp.where(finite, status, jnp.int32(Status.NONFINITE))

    def running(carry: _Carry) -> jax.Array:
        return carry.status == _RUNNING

    def advance(carry: _Carry) -> _Carry:
        # The first turn takes no step: certifying the start here, and not before the loop as well, compiles `certify` once.
        done = jnp.maximum(carry.num_steps, 0)
        num_steps = jnp.maximum(jnp.minimum(carry.num_steps + check_every, max_steps), 0)
        state = lax.fori_loop(done, num_steps, lambda _, inner: step(inner), carry.state)
        certificate = certify(state)
        improved = certificate.error < 0.999 * carry.best_error
        best_error = jnp.where(improved, certificate.error, carry.best_error)
        checks_since_best = jnp.where(improved, 0, carry.checks_since_best + 1)
        status = judge(certificate, best_error, checks_since_best, num_steps)
        return _Carry(state, certificate, best_error, checks_since_best, status, num_steps)

    unknown = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(certify, state))
    start = _Carry(state, unknown, jnp.full_like(unknown.error, jnp.inf), jnp.int32(0), jnp.int32(_RUNNING), jnp.int32(-check_every))
    end = lax.while_loop(running, advance, start)
    return Outcome(end.state, end.certificate, end.status, end.num_steps)
