"""The certified fixed point of a k-agent problem, in one compiled loop, and its derivative."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import either, real, record, tolerance
from jaxsac._implicit import implicit
from jaxsac._iterate import Certificate, iterate
from jaxsac.solution import Solution, Status
from jaxsac.subsample_q.exact.iteration import schemes
from jaxsac.subsample_q.exact.iteration.criterion import Criterion
from jaxsac.subsample_q.exact.operator.expectation import Probe
from jaxsac.subsample_q.exact.operator.plan import BACKENDS
from jaxsac.subsample_q.exact.table import Bounds

INITIAL = either(real("G", "N"), record(Solution))  # a first value, or the Solution that has it
METHODS = ("anderson", "value_iteration")
_PATIENCE = 200  # sweeps without progress


class Surrogate(NamedTuple):
    """A k-agent problem for its Bellman operator: q = rewards + discount · E[value_of(q)]."""

    rewards: jax.Array  # [G, N, A], of one stage
    expect: Callable[[jax.Array], jax.Array]  # V [G, N] to its expectation after a move [G, N, A]
    value_of: Callable[[jax.Array], jax.Array]  # q [G, N, A] to V [G, N]
    discount: jax.Array  # []

    def q_of(self, value: jax.Array) -> jax.Array:
        return self.rewards + self.discount * self.expect(value)


class Settings(NamedTuple):
    """The numbers of a solve as arrays, so that every kind of number shares one trace."""

    tol: jax.Array  # []
    max_steps: Any  # int32 []
    initial: Any  # [G, N], the first value

    @classmethod
    def of(cls, shape: tuple[int, int], dtype: Any, tol, max_steps, initial):
        initial = initial.state if isinstance(initial, Solution) else initial
        # arrays of NumPy, which nothing has to compute
        initial = np.zeros(shape, dtype) if initial is None else initial
        _checks.require(
            getattr(initial, "shape", None) == shape and initial.dtype == dtype,
            f"initial must be the value of another solve, {jnp.dtype(dtype)} {list(shape)}.",
        )
        most = np.int32(max_steps) if _checks.is_concrete(max_steps) else max_steps
        return cls(tolerance(tol, dtype), most, initial)


class FixedPoint(NamedTuple):
    """q, its value and bounds, how the loop ended, and what it says of itself."""

    q: jax.Array  # [G, N, A]
    value: jax.Array  # [G, N]
    bounds: Bounds
    status: jax.Array  # int32 []
    stats: dict[str, jax.Array]


class _State(NamedTuple):
    proposal: jax.Array  # [G, N], what the next sweep evaluates
    evaluated: jax.Array  # [G, N], what the last sweep evaluated
    expected: jax.Array  # [G, N, A], its expectation
    low: jax.Array  # [], range of T V − V of the last sweep
    high: jax.Array  # []
    operator_error: jax.Array  # []
    sweep: jax.Array  # int32 []
    memory: Any  # of the scheme


def fixed_point(
    surrogate: Surrogate,
    probe: Probe | None,
    settings: Settings,
    time: jax.Array | None = None,
    *,
    backend: str,
    criterion: str = "discounted",
    method: str = "anderson",
    stopping: str = "span",
) -> FixedPoint:
    """Iterate the surrogate's operator, which has the form `backend`, to its certified fixed point;
    the first sweep measures the operator on `probe`, if there is one. `time` is `expected_time` of
    a model that ends.
    """
    tol, max_steps, initial = settings
    average, best = criterion == "average", surrogate.value_of(surrogate.rewards)
    judge = Criterion.of(surrogate.discount, best, time, average=average, stopping=stopping)
    surrogate = surrogate._replace(discount=judge.discount)
    scheme = getattr(schemes, method)(judge)
    eps = jnp.finfo(initial.dtype).eps

    def measured(expected, values):
        """The error of the operator on the probe."""
        mixed = jnp.einsum("gna,a->gn", expected, values.weights, precision="highest")
        return jnp.max(jnp.abs(mixed - values.exact))

    def sweep(state: _State) -> _State:
        expected = surrogate.expect(state.proposal)
        q = surrogate.rewards + surrogate.discount * expected
        learns = jnp.bool_(True) if probe is None else state.sweep > 0
        after = surrogate.value_of(q)
        difference = after - state.proposal
        memory, proposal = scheme.next(state.memory, state.proposal, after, learns)
        error = state.operator_error
        if probe is not None:
            error = _loops.cond(
                learns, lambda old, *_: old, lambda _, *new: measured(*new), error, expected, probe
            )
        return _State(
            jnp.where(learns, proposal, initial),
            jnp.where(learns, state.proposal, state.evaluated),
            jnp.where(learns, expected, state.expected),
            jnp.where(learns, jnp.min(difference), state.low),
            jnp.where(learns, jnp.max(difference), state.high),
            error,
            state.sweep + 1,
            memory,
        )

    def certify(state: _State) -> Certificate:
        largest = jnp.max(jnp.abs(state.evaluated)) + jnp.max(jnp.abs(best))
        rounding = (2 * eps + state.operator_error) * largest * judge.reach
        return Certificate(judge.half_width(state.low, state.high), rounding, judge.scale)

    # Before a sweep, what is known is what follows from a value of zero, whose image is `best`.
    start = _State(
        initial if probe is None else probe.values,
        jnp.zeros_like(initial),
        jnp.zeros_like(surrogate.rewards),
        jnp.min(best),
        jnp.max(best),
        jnp.zeros((), initial.dtype),
        jnp.int32(0),
        scheme.init(initial),
    )
    end = iterate(sweep, certify, start, tol=tol, max_steps=max_steps, patience=_PATIENCE)

    state: _State = end.state
    q = surrogate.rewards + surrogate.discount * state.expected
    value = surrogate.value_of(q)
    status = jnp.where(jnp.all(jnp.isfinite(q)), end.status, jnp.int32(Status.NONFINITE))
    failed = jnp.where(status == Status.NONFINITE, jnp.nan, 0).astype(value.dtype)
    shift, bounds = judge.centre(value + failed, state.low, state.high, certify(state).rounding)
    shift = shift + failed
    stats = end._replace(status=status).stats | {
        "operator_error": state.operator_error,
        "method": jnp.int32(METHODS.index(method)),
        "backend": jnp.int32(BACKENDS.index(backend)),
    }
    if average:
        stats["gain"] = (state.low + state.high) / 2
    return FixedPoint(q + shift, value + shift, bounds, status, stats)


def differentiable(
    found: FixedPoint, surrogate_of: Callable[[Any], Surrogate], params: Any
) -> FixedPoint:
    """`found` with its derivative in `params`, of which surrogate_of(params) is the problem."""

    def residual(q, params):
        surrogate = surrogate_of(params)
        return surrogate.q_of(surrogate.value_of(q)) - q

    q = implicit(residual, _krylov, found.q, params, symmetric=False)
    value = surrogate_of(params).value_of(q)
    return found._replace(q=q, value=value, bounds=_moved(found.bounds, value))


def differentiable_average(
    found: FixedPoint, surrogate_of: Callable[[Any], Surrogate], params: Any
) -> FixedPoint:
    """As `differentiable`, of the gain and the relative values: q = r + E[max_a q] − gain with
    max_a q[0, 0, a] = 0.
    """

    def residual(unknown, params):
        q, gain = unknown
        surrogate = surrogate_of(params)
        value = surrogate.value_of(q)
        return surrogate.rewards + surrogate.expect(value) - gain - q, value[0, 0]

    start = (found.q, found.stats["gain"])
    q, gain = implicit(residual, _krylov, start, params, symmetric=False)
    value = surrogate_of(params).value_of(q)
    return FixedPoint(
        q, value, _moved(found.bounds, gain), found.status, found.stats | {"gain": gain}
    )


def _moved(bounds: Bounds, by: jax.Array) -> Bounds:
    """The bounds, with the derivative of what they bound."""
    zero = by - lax.stop_gradient(by)
    return Bounds(bounds.lower + zero, bounds.upper + zero)


def _krylov(matvec: Callable[[Any], Any], right_side: Any) -> Any:
    """Solve the linearised fixed-point equation, (discount P_π − I) x = right side, to 1,000 ulp of
    the right side.
    """
    eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(right_side))).eps)
    return jax.scipy.sparse.linalg.gmres(
        matvec, right_side, tol=1e3 * eps, atol=0.0, restart=20, maxiter=100, solve_method="batched"
    )[0]
