"""The one loop: run steps, certify now and then, and say how it ended."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.solution import RUNNING, reason_of, verdict

State = TypeVar("State")


class Certificate(NamedTuple):
    """Proof of how far a state is from the answer, recomputed from scratch: three scalars of one
    dtype.

    `error` bounds the distance (a duality gap, a Bellman residual bound, a stationarity measure),
    `rounding` bounds what floating-point arithmetic may have hidden in it, and `scale` is the size
    that makes `tol` relative.
    """

    error: jax.Array
    rounding: jax.Array
    scale: jax.Array


class Outcome(NamedTuple):
    """Where a loop ended: the last state, its certificate, a `Status` code and the number of steps
    taken; int32 arrays, or the host's numbers.
    """

    state: Any
    certificate: Certificate
    status: Any
    num_steps: Any

    @property
    def stats(self) -> dict[str, jax.Array]:
        """What every solver says of its run: error, rounding, scale, num_steps and reason."""
        reason = reason_of(self.status, self.certificate)
        return {**self.certificate._asdict(), "num_steps": self.num_steps, "reason": reason}


class _Carry(NamedTuple):
    state: Any
    certificate: Certificate
    best_error: jax.Array
    checks_since_best: jax.Array
    status: jax.Array
    num_steps: jax.Array


_WIDTH = {
    "cpu": 32
}  # lanes worked on together, at most: there wider products are no cheaper for a lane
_WIDE = 1024  # elsewhere
_NARROWER = 8


def iterate(
    step: Callable[[State], State],
    certify: Callable[[State], Certificate],
    state: State,
    *,
    tol: jax.Array,
    max_steps: jax.Array | int,
    check_every: int = 1,
    patience: int = 20,
    useful: Callable[[State], Any] = lambda state: True,
) -> Outcome:
    """Apply `step` until `certify` proves the tolerance, the step limit comes, a non-finite
    certificate appears or progress ends.

    `certify` runs on the first state (a good warm start takes no step) and after every
    `check_every` steps. The loop ends as

    * CONVERGED  when error + rounding ≤ tol · scale,
    * NONFINITE  when error, rounding or scale is NaN or infinite,
    * STALLED    when error ≤ rounding without convergence, or no check out of `patience` improved
      the least error by 0.1 %, or further steps from the state are not `useful`,
    * MAX_STEPS  otherwise, when `max_steps` are done (a multiple of `check_every`, except the last
      stretch).

    Batch with `jax.vmap`: finished lanes keep their state bitwise while others go on. `tol` and
    `max_steps` may be traced.
    """
    tol, max_steps = jnp.asarray(tol), jnp.asarray(max_steps, jnp.int32)
    turn = _turn(step, certify, tol, max_steps, check_every, patience, useful)
    end = _loops.while_loop(
        lambda carry: carry.status == RUNNING, turn, _start(certify, state, check_every)
    )
    return Outcome(end.state, end.certificate, end.status, end.num_steps)


def iterate_lanes(
    step: Callable[[Any, State], State],
    certify: Callable[[Any, State], Certificate],
    lanes: Any,
    states: State,
    *,
    tol: jax.Array,
    max_steps: jax.Array | int,
    check_every: int = 1,
    patience: int = 20,
    compact: bool = True,
) -> Outcome:
    """`iterate` for B lanes in step: what `jax.vmap` of it computes, without much of the work on
    lanes that have ended.

    The leaves of `lanes`, what a lane has of its own, and of `states` have a leading axis [B];
    `step(lane, state)` and `certify(lane, state)` are for one lane, and what they close over is
    shared: a product of a shared matrix with each lane's vector is one product of matrices. `tol`
    and `max_steps` are scalars or [B]. Returns an Outcome with a leading axis [B].

    The lanes that run are gathered, the first ones first, up to a number at a time; once only an
    eighth of that number runs, up to that eighth. `compact=False`, for lanes that are large
    themselves, copies none of them and keeps all to the end, their places masked.
    """
    size = jax.tree.leaves(states)[0].shape[0]
    tol = jnp.broadcast_to(tol, (size,))
    max_steps = jnp.broadcast_to(jnp.asarray(max_steps, jnp.int32), (size,))

    def one(lane: Any, tol: jax.Array, max_steps: jax.Array, carry: _Carry) -> _Carry:
        turn = _turn(
            functools.partial(step, lane),
            functools.partial(certify, lane),
            tol,
            max_steps,
            check_every,
            patience,
        )
        return jax.tree.map(
            lambda new, old: jnp.where(carry.status == RUNNING, new, old), turn(carry), carry
        )

    everything = (lanes, tol, max_steps)

    def turn(width: int, carry: _Carry) -> _Carry:
        if width == size:
            return jax.vmap(one)(*everything, carry)
        running = jnp.nonzero(carry.status == RUNNING, size=width, fill_value=size)[0]
        # A place without a lane works on the last one, in vain.
        few = jax.tree.map(lambda leaf: leaf.at[running].get(mode="clip"), (*everything, carry))
        return jax.tree.map(
            lambda every, new: every.at[running].set(new, mode="drop"), carry, jax.vmap(one)(*few)
        )

    carry = jax.vmap(
        lambda lane, state: _start(functools.partial(certify, lane), state, check_every)
    )(lanes, states)
    for width, rest in _stages(size) if compact else [(size, 0)]:
        carry = _loops.while_loop(
            lambda carry, rest=rest: jnp.sum(carry.status == RUNNING) > rest,
            functools.partial(turn, width),
            carry,
        )
    return Outcome(carry.state, carry.certificate, carry.status, carry.num_steps)


def _stages(size: int) -> list[tuple[int, int]]:
    """Widths, and the number of lanes left at which the next takes over; each is compiled, so there
    are two.
    """
    width = min(size, _WIDTH.get(jax.default_backend(), _WIDE))
    narrow = width // _NARROWER
    return [(width, narrow), (narrow, 0)] if narrow > 1 else [(width, 0)]


def _start(certify: Callable[[State], Certificate], state: State, check_every: int) -> _Carry:
    unknown = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(certify, state)
    )
    return _Carry(
        state,
        unknown,
        jnp.full_like(unknown.error, jnp.inf),
        jnp.int32(0),
        jnp.int32(RUNNING),
        jnp.int32(-check_every),
    )


def _turn(
    step: Callable[[State], State],
    certify: Callable[[State], Certificate],
    tol: jax.Array,
    max_steps: jax.Array,
    check_every: int,
    patience: int,
    useful: Callable[[State], Any] = lambda state: True,
) -> Callable[[_Carry], _Carry]:
    """Some steps, a certificate, and the verdict."""

    def advance(carry: _Carry) -> _Carry:
        # The first turn takes no step: certifying the start here, and not before the loop as well,
        # compiles `certify` once.
        done = jnp.maximum(carry.num_steps, 0)
        num_steps = jnp.maximum(jnp.minimum(carry.num_steps + check_every, max_steps), 0)
        state = _loops.fori_loop(done, num_steps, lambda _, inner: step(inner), carry.state)
        certificate = certify(state)
        improved = certificate.error < 0.999 * carry.best_error
        best_error = jnp.where(improved, certificate.error, carry.best_error)
        checks_since_best = jnp.where(improved, 0, carry.checks_since_best + 1)
        progress = (checks_since_best < patience) & useful(state)
        status = verdict(certificate, tol, progress=progress, more=num_steps < max_steps)
        return _Carry(state, certificate, best_error, checks_since_best, status, num_steps)

    return advance
