"""`solve`: outer steps until a certificate holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsac import _checks
from jaxsac._arguments import arguments, function, integer, key, real, record, size, tolerance
from jaxsac._iterate import Certificate
from jaxsac.bilevel.certificate import Measurement, measure, run_checked
from jaxsac.bilevel.method import DEFAULT, METHOD, MOMENTUM, SIGMA, Method, Sigma, State, scheme_of
from jaxsac.bilevel.outer_step import advance as take_step, init
from jaxsac.bilevel.paired import PairedOptimizer
from jaxsac.bilevel.problem import (
    DATA,
    VARIABLES,
    Oracle,
    Problem,
    Tree,
    add,
    arrays_only,
    dtype_of,
    norm,
    original,
    per_problem,
    require_like,
    undifferentiated,
)
from jaxsac.solution import Reason, Solution, Status, register


class _Run(NamedTuple):
    state: State
    least: jax.Array  # [] the upper value when it last fell
    fruitless: jax.Array  # [] int32: checks since
    waited: jax.Array  # [] int32: steps since x moved


@register
class Bilevel(NamedTuple):
    """An answer. Where the lower level has several minimisers, y is any of them and `optimistic_y`
    approaches the one with the least upper value.
    """

    x: Tree  # the upper variable, shaped like x0
    y: Tree  # the lower minimiser z, shaped like y0
    optimistic_y: Tree  # the copy z + σ d that the upper level pulls at, shaped like y0


@arguments(
    problem=record(Problem),
    x0=VARIABLES,
    y0=VARIABLES,
    sigma=SIGMA,
    **METHOD,
    momentum=MOMENTUM,
    data=DATA,
    sample=function("(key, data) -> batch"),
    key=key(),
    tol=real(low=0),
    max_steps=integer(low=0),
    check_every=size(1),
    patience=integer(low=1),
    state=record(State, Solution),
)
def solve(
    problem: Problem,
    x0: Tree,
    y0: Tree,
    *,
    sigma: Any = 1e-2,
    difference: str = "central_linear",
    outer: optax.GradientTransformation = DEFAULT.outer,
    inner: PairedOptimizer | optax.GradientTransformation = DEFAULT.inner,
    inner_steps: int = 1,
    variance_reduction: bool = False,
    momentum: Any = 0.1,
    data: Any = None,
    sample: Callable[[jax.Array, Any], Any] | None = None,
    key: jax.Array | None = None,
    tol: Any = None,
    max_steps: Any = 500,
    check_every: int = 10,
    patience: Any = None,
    state: State | Solution | None = None,
) -> Solution:
    """Minimise upper(x, y*(x)) over x, where y*(x) minimises lower(x, y), with gradients of the two
    functions only.

        minimise_x  Φ_σ(x) = min_y {upper(x, y) + [lower(x, y) − min_y' lower(x, y')] / σ}

    by repeating `step` (see there); Φ_σ tends to the bilevel objective as σ falls, with an error
    O(σ) for "forward", and O(σ²) for the others.

    * `x0`, `y0`: pytrees of floating arrays of one dtype, which is the dtype of the whole
      computation.
    * `sigma`: σ > 0, a number, a schedule (step number -> number) or "relative"; traced like `tol`,
      `max_steps` and `momentum`.
    * `difference`, `outer`, `inner`, `inner_steps`, `variance_reduction`: see `Method`.
    * `data`: third argument of upper and lower. `sample(key, data) -> batch` draws a mini-batch of
      it: one for each inner step, shared by the lower-level copies, and one for the outer step;
      `key` is consumed. The certificate always uses all of `data`.
    * `tol`: of the certificate, relative; 1e-6 in float64 and 1e-4 in float32. It is looked at
      after every `check_every` steps.
    * `patience`: early stop: the run ends where so many checks in a row did not see upper(x, z)
      fall by more than rounding and what z's distance from y*(x) is worth. Checks where h is not
      known to a half do not count: while z is far from y*(x) the value says nothing. The answer is
      the last point; it is STALLED, for the reason EARLY_STOP, unless the certificate holds. None:
      no early stop.
    * `state`: an earlier solution, or the state of one, to continue from.

    Returns: a `Solution`, whose value is `Bilevel(x, y, optimistic_y)`; stats has the `Diagnostics`
    by name, `upper` (the upper level's value), `sigma`, and `history`, error / scale at the last 10
    checks, the newest last and NaN before the first, beside error, rounding, scale, num_steps
    (outer steps) and reason. CONVERGED: ‖h‖ (of the projected step, where there is a projection) +
    its estimated error + rounding ≤ tol · scale, with scale the larger of ‖f_x‖ + ‖h − f_x‖ and the
    first ‖h‖ that was known to a half, and neither diagnostic of a wrong σ fires; it certifies a
    stationary point of Φ_σ. A σ too large for the difference, or a lower level of several basins,
    ends as STALLED or MAX_STEPS with `consistency` > 0.5 or `lower_gap` < 0; a diverging inner rate
    as NONFINITE; where x waited through the last `check_every` steps for a lower level that `inner`
    does not solve, the reason is LOWER_LEVEL. Not differentiable (a derivative of a hypergradient
    needs second-order products): differentiate through `argmin`.

    Raises: ValueError for σ ≤ 0 (traced: NONFINITE), for structures that do not fit, and for
    methods that do not go together.

    Source: Gaur et al., arXiv 2503.17644; Kwon et al. 2023 (F2SA); F2BA, arXiv 2306.14853.
    """
    method = Method(difference, inner, outer, inner_steps, variance_reduction)
    _checks.require(
        sample is None or data is not None,
        "sample needs data: the certificate is computed on all of it. For a stream use step.",
    )
    _checks.require(
        sample is None or key is not None or state is not None,
        "sample needs a key: pass key=jax.random.key(seed).",
    )
    at: State | None = state.state if isinstance(state, Solution) else state
    if at is None:
        at = init(problem, x0, y0, method, key=key)
    else:
        require_like("state", (at.x, at.z), arrays_only(x0, y0))
        at = at if key is None else at._replace(key=key)
    dtype = dtype_of(at.x)
    patience = jnp.iinfo(jnp.int32).max if patience is None else patience
    solution = _solve(
        problem,
        method,
        sample,
        check_every,
        undifferentiated(at),
        Sigma.of(sigma, dtype),
        jnp.asarray(momentum, dtype),
        undifferentiated(data),
        tolerance(tol, dtype),
        tuple(jnp.asarray(number, jnp.int32) for number in (max_steps, patience)),
    )
    solution = undifferentiated(solution)  # in what the functions close over neither
    return solution._replace(value=Bilevel(*map(original, solution.value)))


@per_problem(4)
def _solve(
    problem, method, sample, check_every, state, sigma, momentum, data, tol, limits
) -> Solution:
    scheme, (max_steps, patience) = scheme_of(method), limits
    oracle, eps = Oracle(problem, data), jnp.finfo(tol.dtype).eps

    def advance(run: _Run) -> _Run:
        state = run.state
        batch, inner_batches, key = data, None, state.key
        if sample is not None:
            assert state.key is not None  # `solve` has checked
            key, outer_key, inner_key = jax.random.split(state.key, 3)
            keys = jax.random.split(inner_key, method.inner_steps)
            inner_batches = jax.vmap(sample, in_axes=(0, None))(keys, data)
            batch = sample(outer_key, data)
        now = sigma.at(scheme, state)
        state, report = take_step(
            problem, state, method, now, batch, inner_batches, momentum, sample is None
        )
        waited = jnp.where(report["waits"], run.waited + 1, 0)
        return run._replace(state=state._replace(key=key), waited=waited)

    def judge(run: _Run) -> tuple[_Run, Measurement]:
        state = run.state
        x, z, d = state.x, state.z, state.d
        measured = measure(oracle, scheme, x, z, d, sigma.at(scheme, state), tol=tol)
        error, rounding, parts = measured.certificate
        size = norm(measured.hypergradient)
        known = (state.scale == 0) & (error <= 0.5 * size)
        state = state._replace(scale=jnp.where(known, size, state.scale))
        total = measured.diagnostics.hypergradient_norm + error
        certificate = Certificate(total, rounding, jnp.maximum(parts, state.scale))
        upper, judged = oracle.upper(x, z), error <= 0.5 * parts
        at_most = upper + jnp.abs(measured.shift)
        fell = judged & (at_most < run.least - 16 * eps * jnp.abs(upper))
        least = jnp.where(fell, at_most, run.least)
        fruitless = jnp.where(fell, 0, run.fruitless + jnp.int32(judged))
        return _Run(state, least, fruitless, run.waited), measured._replace(certificate=certificate)

    (last, _, fruitless, waited), _, status, stats = run_checked(
        advance,
        judge,
        _Run(state, jnp.full((), jnp.inf, tol.dtype), jnp.int32(0), jnp.int32(0)),
        state.x,
        tol=tol,
        max_steps=max_steps,
        check_every=check_every,
        patience=200,
        useful=lambda run: run.fruitless < patience,
    )
    reason, ended = stats["reason"], status == Status.STALLED
    slow = (ended | (status == Status.MAX_STEPS)) & (waited >= check_every)
    slow &= reason != Reason.NO_MINIMISER
    reason = jnp.where(slow, jnp.int32(Reason.LOWER_LEVEL), reason)
    early = ended & (fruitless >= patience)
    stats["reason"] = jnp.where(early, jnp.int32(Reason.EARLY_STOP), reason)
    now = sigma.at(scheme, last)
    stats |= {"upper": oracle.upper(last.x, last.z), "sigma": now}
    value = jax.tree.map(
        lambda leaf: jnp.where(status == Status.NONFINITE, jnp.nan, leaf),
        (last.x, last.z, add(last.z, scheme.first(last.d), now)),
    )
    return Solution(value, status, stats, last)
