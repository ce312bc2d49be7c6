"""The single loop: paired inner steps, a hypergradient, an outer step; and `solve`, which repeats
them until a certificate holds.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsac import _checks
from jaxsac._iterate import Certificate
from jaxsac.bilevel.certificate import Diagnostics, Measurement, measure, run_checked
from jaxsac.bilevel.paired import PairedOptimizer, as_paired, paired_step
from jaxsac.bilevel.problem import (
    Oracle,
    Problem,
    Tree,
    add,
    arrays_only,
    dtype_of,
    norm,
    on_arrays,
    original,
    prox_at,
    require_like,
    subtract,
    zeros,
)
from jaxsac.bilevel.schemes import (
    COMPARATORS,
    DIFFERENCES,
    SCHEMES,
    Scheme,
    balanced_factor,
    cross_term,
    hold_direction,
    relative_sigma,
    solve_direction,
)
from jaxsac.solution import Solution

Sigma = Any  # a number, a schedule (step number -> sigma), or "relative"

_UNROLL = 5  # inner loops up to this length are unrolled: a loop costs more than a small gradient


class Method(NamedTuple):
    """How a bilevel problem is solved; static, so build it once and reuse it.

    * `difference`: "forward" (the paper's method), "central", "central_linear" or "one_sided"; and
      three comparators that use second-order products: "soba", "implicit" (conjugate gradients at
      every outer step) and "unrolled" (differentiates through the inner steps).
    * `inner`: a linear optax optimiser, or a `PairedOptimizer`; `inner_steps`: K, the inner steps
      to an outer one.
    * `outer`: any optax optimiser.
    * `variance_reduction`: recursive momentum (STORM, Cutkosky & Orabona 2019) on the directions of
      z, d and x.
    * `linear_steps`: the limit of conjugate-gradient steps of "implicit"; None is ten times the
      dimension.
    """

    difference: str = "forward"
    inner: PairedOptimizer | optax.GradientTransformation = optax.sgd(0.1)
    outer: optax.GradientTransformation = optax.adam(1e-2)
    inner_steps: int = 1
    variance_reduction: bool = False
    linear_steps: int | None = None


DEFAULT = Method()


class _Recursion(NamedTuple):
    """Where the variance-reduced estimates stand: their values, and the points at which the last
    batch was seen.
    """

    inner: tuple[Tree, Tree]
    inner_point: tuple[Tree, Tree, Tree]
    outer: Tree
    outer_point: tuple[Tree, Tree, Tree]


class State(NamedTuple):
    """What a run continues from: the upper variable x, the lower point z and direction d (copies at
    z + sigma d), and the optimisers.
    """

    x: Tree
    z: Tree
    d: Tree
    inner: Any
    outer: Any
    sigma: jax.Array
    num_steps: jax.Array
    scale: jax.Array
    key: jax.Array | None = None
    recursion: _Recursion | None = None


class Bilevel(NamedTuple):
    """An answer: the upper variable x, the lower minimiser y = z, and the copy z + sigma d that the
    upper level pulls at.

    Where the lower level has several minimisers, z is any of them and `optimistic_y` approaches the
    one with the least upper value.
    """

    x: Tree
    y: Tree
    optimistic_y: Tree


def init(
    problem: Problem, x0: Tree, y0: Tree, method: Method = DEFAULT, *, key: jax.Array | None = None
) -> State:
    """The state before the first `step`: x = x0, all lower-level copies at y0 (d = 0). `key` is
    kept for `solve` to draw batches.
    """
    scheme = _scheme(method)
    x, y = arrays_only(x0, y0)
    zero = jnp.zeros((), dtype_of(x))
    _checks.require(
        problem.prox_y is None or method.difference not in COMPARATORS,
        f'difference="{method.difference}" differentiates the lower level twice, which a prox_y does not allow: use one of {DIFFERENCES}.',
    )
    # a projection of another shape is an error here, and not deep in a loop
    if problem.project_x is not None:
        jax.eval_shape(on_arrays(problem.project_x), x)
    if problem.prox_y is not None:
        jax.eval_shape(lambda rate: prox_at(problem, x, rate)(y), zero + 1)
    d = scheme.start(y)
    recursion = (
        _Recursion((zeros(y), zeros(d)), (x, y, d), zeros(x), (x, y, d))
        if method.variance_reduction
        else None
    )
    return State(
        x,
        y,
        d,
        as_paired(method.inner, y).init(y, d),
        method.outer.init(x),
        zero,
        jnp.int32(0),
        zero,
        key,
        recursion,
    )


def step(
    problem: Problem,
    state: State,
    method: Method = DEFAULT,
    *,
    sigma: Sigma = 1e-2,
    batch: Any = None,
    inner_batches: Any = None,
    momentum: Any = 0.1,
) -> tuple[State, dict[str, jax.Array]]:
    """One outer step: K paired inner steps, the hypergradient, and an outer optimiser step. Pure;
    for use inside `jit`, `scan` and `vmap`.

    With forward differences, rate a, and one batch for all copies (Gaur et al., arXiv 2503.17644,
    in the form of Kwon et al. 2023):

        K times:  u_z = g_y(x, z),  u_y = g_y(x, y) + sigma f_y(x, y)  with  y = z + sigma d
                  z <- z - a u_z,   d <- d - a (u_y - u_z) / sigma
        h = f_x(x, y) + [g_x(x, y) - g_x(x, z)] / sigma,   x <- project_x(outer(x, h))

    `batch` is what upper and lower get as their third argument; `inner_batches`, with a leading
    axis of K, gives each inner step its own. `sigma` is a number, a schedule (step number -> sigma)
    or "relative" (where rounding and bias balance in the dtype, from ‖z‖ / ‖d‖); d is kept when it
    changes, so that the copies move along. `momentum` in (0, 1] is the weight of fresh information
    when variance is reduced. Returns the state and by-products of the step: `hypergradient_norm`,
    `residual_z`, `residual_d`, `sigma`. With central_linear the K steps of z come first, then c =
    f_y(x, z), then K steps of d: the order that allows the largest outer rates. Cost in gradients:
    forward 2K + 3, central 2K + 4, central_linear 3K + 3.
    """
    scheme = _scheme(method)
    require_like("state.d", state.d, jax.eval_shape(scheme.start, state.z))
    _checks.require(
        all(
            jnp.shape(leaf)[:1] == (method.inner_steps,) for leaf in jax.tree.leaves(inner_batches)
        ),
        f"inner_batches needs a leading axis of inner_steps = {method.inner_steps} in every array: one batch for each inner step.",
    )
    inner = as_paired(method.inner, state.z)
    sigma = _sigma_now(sigma, scheme, state)
    momentum = jnp.asarray(momentum).astype(sigma.dtype)
    oracle = Oracle(problem, batch)
    field = hold_direction if method.difference in ("implicit", "unrolled") else scheme.field
    zero = jnp.zeros((), sigma.dtype)

    def repeat(body, carry):
        """`body(carry, k, oracle of the k-th batch)` for the K inner steps."""

        def one(carry, row):
            return body(
                carry, row[0], oracle if inner_batches is None else Oracle(problem, row[1])
            ), None

        if method.inner_steps <= _UNROLL:
            for k in range(method.inner_steps):
                carry, _ = one(
                    carry, (jnp.int32(k), jax.tree.map(lambda leaf, k=k: leaf[k], inner_batches))
                )
            return carry
        return lax.scan(
            one, carry, (jnp.arange(method.inner_steps, dtype=jnp.int32), inner_batches)
        )[0]

    def together(x):
        """K steps of z and d side by side."""

        def body(carry, k, inner_oracle):
            z, d, optimizer, recursion, _ = carry
            c = inner_oracle.upper_y(x, z) if scheme.linear else None
            directions = field(inner_oracle, x, z, d, sigma, c)
            if recursion is not None:
                last_x, last_z, last_d = recursion.inner_point
                at_last = field(inner_oracle, last_x, last_z, last_d, sigma, None)
                weight = jnp.maximum(
                    momentum,
                    1 / (state.num_steps * method.inner_steps + k + 1).astype(momentum.dtype),
                )
                directions = _corrected(directions, at_last, recursion.inner, weight)
                recursion = recursion._replace(inner=directions, inner_point=(x, z, d))
            z, d, optimizer = paired_step(
                problem, scheme, inner, directions, optimizer, x, z, d, sigma
            )
            return z, d, optimizer, recursion, (norm(directions[0]), norm(directions[1]))

        return repeat(body, (state.z, state.d, state.inner, state.recursion, (zero, zero)))

    def one_after_the_other(x):
        """K steps of z, then K of d at the new z: the upper level is linearised once, where the
        hypergradient is taken.
        """

        def move_z(carry, k, inner_oracle):
            z, optimizer, _ = carry
            u_z = inner_oracle.lower_y(x, z)
            change, optimizer = inner.update_z(u_z, optimizer, z)
            return add(z, change), optimizer, norm(u_z)

        def move_d(carry, k, inner_oracle):
            d, optimizer, _ = carry
            u_d = add(c, cross_term(inner_oracle, x, z, d, sigma, of_y=True))
            change, optimizer = inner.update_d(u_d, optimizer, d, z)
            return add(d, change), optimizer, norm(u_d)

        z, optimizer, residual_z = repeat(move_z, (state.z, state.inner, zero))
        upper_x, c = oracle.upper_gradients(x, z)
        d, optimizer, residual_d = repeat(move_d, (state.d, optimizer, zero))
        h = add(upper_x, cross_term(oracle, x, z, d, sigma))
        return h, (z, d, optimizer, None, (residual_z, residual_d))

    x = state.x
    if scheme.linear and problem.prox_y is None:
        h, (z, d, optimizer, recursion, residuals) = one_after_the_other(x)
    else:
        z, d, optimizer, recursion, residuals = together(x)
        if method.difference == "implicit":
            d = solve_direction(oracle, x, z, d, method.linear_steps)
        h = scheme.hypergradient(oracle, x, z, d, sigma)
    if method.difference == "unrolled":
        h = jax.grad(lambda x: oracle.upper(x, together(x)[0]))(x)
    if recursion is not None:
        weight = jnp.maximum(momentum, 1 / (state.num_steps + 1).astype(momentum.dtype))
        last_x, last_z, last_d = recursion.outer_point
        h = _corrected(
            h, scheme.hypergradient(oracle, last_x, last_z, last_d, sigma), recursion.outer, weight
        )
        recursion = recursion._replace(outer=h, outer_point=(x, z, d))
    with jax.numpy_dtype_promotion("standard"):  # optax does not pass the strict setting
        update, outer = method.outer.update(h, state.outer, x)
    new_x = add(x, update)
    if problem.project_x is not None:
        new_x = on_arrays(problem.project_x)(new_x)
    size = norm(h)
    scale = jnp.where(state.num_steps == 0, size, state.scale)
    report = {
        "hypergradient_norm": size,
        "residual_z": residuals[0],
        "residual_d": residuals[1],
        "sigma": sigma,
    }
    return State(
        new_x, z, d, optimizer, outer, sigma, state.num_steps + 1, scale, state.key, recursion
    ), report


def diagnose(
    problem: Problem,
    state: State,
    method: Method = DEFAULT,
    *,
    sigma: Any = 1e-2,
    batch: Any = None,
) -> Diagnostics:
    """How far a state can be trusted, from scratch; see `Diagnostics`. Costs about four gradients
    more than a step.
    """
    scheme = _scheme(method)
    return measure(
        Oracle(problem, batch), scheme, state.x, state.z, state.d, _sigma_now(sigma, scheme, state)
    ).diagnostics


def solve(
    problem: Problem,
    x0: Tree,
    y0: Tree,
    *,
    sigma: Sigma = 1e-2,
    difference: str = "forward",
    outer: optax.GradientTransformation = DEFAULT.outer,
    inner: PairedOptimizer | optax.GradientTransformation = DEFAULT.inner,
    inner_steps: int = 1,
    variance_reduction: bool = False,
    linear_steps: int | None = None,
    momentum: Any = 0.1,
    data: Any = None,
    sample: Callable[[jax.Array, Any], Any] | None = None,
    key: jax.Array | None = None,
    tol: Any = None,
    max_steps: Any = 500,
    check_every: int = 10,
    state: State | None = None,
) -> Solution:
    """Minimise upper(x, y*(x)) over x, where y*(x) minimises lower(x, y), with gradients of the two
    functions only.

        minimise_x  Phi_sigma(x) = min_y { upper(x, y) + [lower(x, y) - min_y' lower(x, y')] / sigma
        }

    by repeating `step` (see there); Phi_sigma tends to the bilevel objective as sigma falls, with
    an error O(sigma).

    * `x0`, `y0`: pytrees of floating arrays of one dtype, which is the dtype of the whole
      computation. `state` continues an earlier run.
    * `data`: third argument of upper and lower. `sample(key, data) -> batch` draws a mini-batch of
      it: one for each inner step, shared by the lower-level copies, and one for the outer step;
      `key` is consumed. The certificate always uses all of `data`.
    * `sigma`, `tol`, `max_steps` and `momentum` are traced; `sigma` may also be a schedule or
      "relative", and must be > 0.
    * `difference`, `outer`, `inner`, `inner_steps`, `variance_reduction`, `linear_steps`: see
      `Method`.

    CONVERGED: ‖h‖ (of the projected step, where there is a projection) + the two lower-level
    residuals + their rounding ≤ tol · scale, with scale = max(1, first hypergradient norm), and
    neither diagnostic of a wrong sigma fires; it certifies a stationary point of Phi_sigma. A sigma
    too large for the difference, or a lower level of several basins, ends as STALLED or MAX_STEPS
    with `consistency` > 0.5 or `gap` < 0; a diverging inner rate as NONFINITE; sigma ≤ 0 is an
    error (traced: NONFINITE). `tol`: 1e-6 in float64, 1e-4 in float32.

    Returns a `Solution`: `value` is `Bilevel(x, y, optimistic_y)`, `stats` has the `Diagnostics` by
    name, `upper`, `scale`, `error`, `num_steps`, `sigma`. Not differentiable (a derivative of a
    hypergradient needs second-order products): differentiate through `argmin`. Sources: Gaur et
    al., arXiv 2503.17644; Kwon et al. 2023 (F2SA); F2BA, arXiv 2306.14853.
    """
    inner_steps = _checks.static_integer("inner_steps", inner_steps, 1)
    check_every = _checks.static_integer("check_every", check_every, 1)
    method = Method(difference, inner, outer, inner_steps, variance_reduction, linear_steps)
    _checks.require(
        sample is None or data is not None,
        "sample needs data: the certificate is computed on all of it. For a stream use step.",
    )
    _checks.require(
        sample is None or key is not None or state is not None,
        "sample needs a key: pass key=jax.random.key(seed).",
    )
    if state is None:
        state = init(problem, x0, y0, method, key=key)
    else:
        require_like("state", (state.x, state.z), arrays_only(x0, y0))
        state = state if key is None else state._replace(key=key)
    dtype = dtype_of(state.x)
    schedule = sigma if callable(sigma) or isinstance(sigma, str) else None
    number = jnp.zeros((), dtype) if schedule is not None else positive_sigma(sigma, dtype)
    tol = default_tol(dtype) if tol is None else _checks.real_scalar("tol", tol, dtype, 0.0)
    momentum = _checks.real_scalar("momentum", momentum, dtype, 0.0, strict=True)
    solution = _solve(
        problem,
        method,
        schedule,
        sample,
        check_every,
        state,
        number,
        momentum,
        data,
        tol,
        jnp.asarray(max_steps, jnp.int32),
    )
    return solution._replace(value=Bilevel(*map(original, solution.value)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _solve(
    problem, method, schedule, sample, check_every, state, number, momentum, data, tol, max_steps
) -> Solution:
    sigma = number if schedule is None else schedule
    scheme = _scheme(method)
    oracle = Oracle(problem, data)

    def advance(state: State) -> State:
        if sample is None:
            return step(problem, state, method, sigma=sigma, batch=data, momentum=momentum)[0]
        assert state.key is not None  # `solve` has checked
        key, outer_key, inner_key = jax.random.split(state.key, 3)
        inner_batches = jax.vmap(sample, in_axes=(0, None))(
            jax.random.split(inner_key, method.inner_steps), data
        )
        batch = sample(outer_key, data)
        state, _ = step(
            problem,
            state,
            method,
            sigma=sigma,
            batch=batch,
            inner_batches=inner_batches,
            momentum=momentum,
        )
        return state._replace(key=key)

    def judge(state: State) -> Measurement:
        d = (
            solve_direction(oracle, state.x, state.z, state.d, None)
            if method.difference == "unrolled"
            else state.d
        )
        measured = measure(oracle, scheme, state.x, state.z, d, _sigma_now(sigma, scheme, state))
        error = measured.diagnostics.hypergradient_norm + measured.certificate.error
        certificate = Certificate(
            error, measured.certificate.rounding, jnp.maximum(1.0, state.scale)
        )
        return measured._replace(certificate=certificate)

    last, measured, status, num_steps = run_checked(
        advance,
        judge,
        state,
        state.x,
        tol=tol,
        max_steps=max_steps,
        check_every=check_every,
        patience=200,
    )
    now = _sigma_now(sigma, scheme, last)
    stats = {
        **measured.diagnostics._asdict(),
        "upper": oracle.upper(last.x, last.z),
        "error": measured.certificate.error,
        "scale": measured.certificate.scale,
        "sigma": now,
        "num_steps": num_steps,
    }
    return Solution((last.x, last.z, add(last.z, scheme.first(last.d), now)), status, stats, last)


def _scheme(method: Method) -> Scheme:
    _checks.choice("difference", method.difference, DIFFERENCES + COMPARATORS)
    _checks.require(
        not (method.variance_reduction and method.difference in ("central_linear", "unrolled")),
        f'variance_reduction does not go with difference="{method.difference}": use "forward", "central" or "one_sided".',
    )
    return SCHEMES[method.difference]


def _sigma_now(sigma: Sigma, scheme: Scheme, state: State) -> jax.Array:
    dtype = dtype_of(state.x)
    if isinstance(sigma, str):
        _checks.choice("sigma", sigma, ("relative",))
        return relative_sigma(balanced_factor(scheme, dtype), state.z, scheme.first(state.d))
    if callable(sigma):
        return positive_sigma(sigma(state.num_steps), dtype)
    return positive_sigma(sigma, dtype)


def positive_sigma(sigma: Any, dtype: Any) -> jax.Array:
    """sigma as a scalar of `dtype`: an error if it is a number ≤ 0, NaN if it is traced and ≤ 0."""
    sigma = _checks.real_scalar("sigma", sigma, dtype, 0.0, strict=True)
    return jnp.where(sigma > 0, sigma, jnp.nan)


def default_tol(dtype: Any) -> jax.Array:
    return jnp.asarray(1e-6 if jnp.finfo(dtype).bits == 64 else 1e-4, dtype)


def _corrected(fresh: Tree, at_last: Tree, estimate: Tree, weight: jax.Array) -> Tree:
    """fresh + (1 - weight) (estimate - at_last), where fresh and at_last saw the same batch."""
    return add(fresh, subtract(estimate, at_last), 1 - weight)
