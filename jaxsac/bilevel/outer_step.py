"""One outer step: paired inner steps, a hypergradient, and a step of the outer optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac._arguments import anything, arguments, key, record
from jaxsac._linear import dot
from jaxsac.bilevel.certificate import Diagnostics, measure
from jaxsac.bilevel.method import (
    DEFAULT,
    MOMENTUM,
    SIGMA,
    Method,
    Recursion,
    Sigma,
    State,
    scheme_of,
)
from jaxsac.bilevel.paired import PairedOptimizer, as_paired, paired_step
from jaxsac.bilevel.problem import (
    VARIABLES,
    Oracle,
    Problem,
    Tree,
    add,
    arrays_only,
    dtype_of,
    norm,
    on_arrays,
    prox_at,
    require_like,
    subtract,
    zeros,
)
from jaxsac.bilevel.schemes import Scheme, cross_term

_UNROLL = 5  # inner loops up to this length are unrolled: a loop costs more than a small gradient
_TRUST = 0.5  # of ‖c‖ may be wrong while x moves
_BATCH = anything("what upper and lower get as their third argument")


class _Inner(NamedTuple):
    """The K inner steps of one outer step."""

    method: Method
    scheme: Scheme
    optimizer: PairedOptimizer
    batches: Any  # None, or one for each step on a leading axis
    momentum: jax.Array

    def repeat(self, oracle: Oracle, body: Callable[..., Any], carry: Any) -> Any:
        """`body(carry, k, oracle of the k-th batch)` for k = 0, …, K − 1."""

        def one(carry, row):
            own = oracle if self.batches is None else Oracle(oracle.problem, row[1])
            return body(carry, row[0], own), None

        count = self.method.inner_steps
        if count > _UNROLL:
            rows = (jnp.arange(count, dtype=jnp.int32), self.batches)
            return _loops.scan(one, carry, rows)[0]
        for k in range(count):
            batch = jax.tree.map(lambda leaf, k=k: leaf[k], self.batches)
            carry, _ = one(carry, (jnp.int32(k), batch))
        return carry


class _Moved(NamedTuple):
    """z and d after the inner steps, the last directions, f_y where z ended, and whether the lower
    level curves down along d.
    """

    z: Tree
    d: Tree
    optimizer: Any
    recursion: Recursion | None
    directions: tuple[Tree, Tree]
    pull: Tree
    down: jax.Array


@arguments(problem=record(Problem), x0=VARIABLES, y0=VARIABLES, method=record(Method), key=key())
def init(
    problem: Problem, x0: Tree, y0: Tree, method: Method = DEFAULT, *, key: jax.Array | None = None
) -> State:
    """The state before the first `step`: x = x0, all lower-level copies at y0 (d = 0). `key` is
    kept for `solve` to draw batches.
    """
    scheme = scheme_of(method)
    x, y = arrays_only(x0, y0)
    zero = jnp.zeros((), dtype_of(x))
    # a projection of another shape is an error here, and not deep in a loop
    if problem.project_x is not None:
        jax.eval_shape(on_arrays(problem.project_x), x)
    if problem.prox_y is not None:
        jax.eval_shape(lambda rate: prox_at(problem, x, rate)(y), zero + 1)
    d = scheme.start(y)
    inner, outer = as_paired(method.inner, y).init(y, d), method.outer.init(x)
    recursion = None
    if method.variance_reduction:
        recursion = Recursion((zeros(y), zeros(d)), (x, y, d), zeros(x), (x, y, d))
    return State(x, y, d, _packed(inner), _packed(outer), zero, jnp.int32(0), zero, key, recursion)


def _packed(state: Any) -> tuple[jax.Array, ...]:
    """The arrays of an optimiser's state, whose types `jax.export` does not know."""
    return tuple(jax.tree.leaves(state))


def _unpacked(leaves: tuple[jax.Array, ...], init: Callable[..., Any], *variables: Tree) -> Any:
    return jax.tree.structure(jax.eval_shape(init, *variables)).unflatten(leaves)


@arguments(
    problem=record(Problem),
    state=record(State),
    method=record(Method),
    sigma=SIGMA,
    batch=_BATCH,
    inner_batches=anything("the same, with a leading axis of inner_steps"),
    momentum=MOMENTUM,
)
def step(
    problem: Problem,
    state: State,
    method: Method = DEFAULT,
    *,
    sigma: Any = 1e-2,
    batch: Any = None,
    inner_batches: Any = None,
    momentum: Any = 0.1,
) -> tuple[State, dict[str, jax.Array]]:
    """One outer step: K paired inner steps, the hypergradient, and an outer optimiser step. Pure;
    for use inside `jit`, `scan` and `vmap`.

    With forward differences, rate a, and one batch for all copies:

        K times:  u_z = g_y(x, z),  u_y = g_y(x, y) + σ f_y(x, y)  with  y = z + σ d
                  z ← z − a u_z,   d ← d − a (u_y − u_z) / σ
        h = f_x(x, y) + [g_x(x, y) − g_x(x, z)] / σ,   x ← project_x(outer(x, h))

    With central_linear the K steps of z come first, then c = f_y(x, z), then K steps of d: the
    order that allows the largest outer rates. Cost in gradients: forward 2K + 3, central 2K + 4,
    central_linear 3K + 3.

    Without batches x, and the outer optimiser, wait where they are while h is not to be trusted:
    while ‖u_d‖ > ½ ‖c‖ (½ of d's equation is not solved), while c changes by more than ½ ‖c‖ where
    z goes by −u_z ‖d‖ / ‖c‖ (about where it will come to rest), which is one upper gradient more
    (two, but for central_linear), and while the lower level curves down along d (central_linear),
    as it cannot at a minimiser. Not with a `prox_y`.

    * `sigma`: σ > 0, a number, a schedule (step number -> number) or "relative" (where rounding and
      bias balance in the dtype, from ‖z‖ / ‖d‖); d is kept when it changes, so that the copies move
      along.
    * `batch`: what upper and lower get as their third argument; `inner_batches`, with a leading
      axis of K, gives each inner step its own.
    * `momentum`: in (0, 1], the weight of fresh information when variance is reduced.

    Returns: the state, and by-products of the step: `hypergradient_norm`, `residual_z`,
    `residual_d`, `sigma`, and `waits`, whether x did.

    Source: Gaur et al., arXiv 2503.17644, in the form of Kwon et al. 2023.
    """
    sigma = Sigma.of(sigma, state.dtype).at(scheme_of(method), state)
    whole = batch is None and inner_batches is None
    return advance(problem, state, method, sigma, batch, inner_batches, momentum, whole)


def advance(
    problem: Problem,
    state: State,
    method: Method,
    sigma: jax.Array,
    batch: Any,
    inner_batches: Any,
    momentum: Any,
    whole: bool,
) -> tuple[State, dict[str, jax.Array]]:
    """`step` with arguments that have been converted; `whole` where the batch is the problem."""
    scheme = scheme_of(method)
    require_like("state.d", state.d, jax.eval_shape(scheme.start, state.z))
    _checks.require(
        all(
            jnp.shape(leaf)[:1] == (method.inner_steps,) for leaf in jax.tree.leaves(inner_batches)
        ),
        f"inner_batches needs a leading axis of inner_steps = {method.inner_steps} in every array:"
        " one batch for each inner step.",
    )
    momentum = jnp.asarray(momentum, sigma.dtype)
    oracle = Oracle(problem, batch)
    inner = _Inner(method, scheme, as_paired(method.inner, state.z), inner_batches, momentum)
    x = state.x
    if scheme.linear and problem.prox_y is None:
        h, moved = one_after_the_other(oracle, inner, state, sigma)
    else:
        moved = together(oracle, inner, state, sigma)
        h = scheme.hypergradient(oracle, x, moved.z, moved.d, sigma)
    z, d, optimizer, recursion, directions, c, down = moved
    residuals = norm(directions[0]), norm(directions[1])
    waits = jnp.asarray(False)
    if whole and problem.prox_y is None:
        c = oracle.upper_y(x, z) if c is None else c
        waits = down | _doubtful(oracle, x, z, scheme.first(d), directions[0], residuals[1], c)
    if recursion is not None:
        weight = jnp.maximum(momentum, 1 / (state.num_steps + 1).astype(momentum.dtype))
        at_last = scheme.hypergradient(oracle, *recursion.outer_point, sigma)
        h = _corrected(h, at_last, recursion.outer, weight)
        recursion = recursion._replace(outer=h, outer_point=(x, z, d))
    with jax.numpy_dtype_promotion("standard"):  # optax does not pass the strict setting
        update, outer = method.outer.update(h, _unpacked(state.outer, method.outer.init, x), x)
    new_x = add(x, update)
    if problem.project_x is not None:
        new_x = on_arrays(problem.project_x)(new_x)
    new_x, outer = jax.tree.map(
        lambda old, new: jnp.where(waits, old, new), (x, state.outer), (new_x, _packed(outer))
    )
    report = {
        "hypergradient_norm": norm(h),
        "residual_z": residuals[0],
        "residual_d": residuals[1],
        "sigma": sigma,
        "waits": waits,
    }
    return State(
        new_x,
        z,
        d,
        _packed(optimizer),
        outer,
        sigma,
        state.num_steps + 1,
        state.scale,
        state.key,
        recursion,
    ), report


def together(oracle: Oracle, inner: _Inner, state: State, sigma: jax.Array) -> _Moved:
    """K steps of z and d side by side."""
    x, scheme, count = state.x, inner.scheme, inner.method.inner_steps

    def body(carry: _Moved, k, oracle):
        z, d, optimizer, recursion, *_ = carry
        c = oracle.upper_y(x, z) if scheme.linear else None
        directions = scheme.field(oracle, x, z, d, sigma, c)
        if recursion is not None:
            at_last = scheme.field(oracle, *recursion.inner_point, sigma, None)
            fresh = 1 / (state.num_steps * count + k + 1).astype(sigma.dtype)
            weight = jnp.maximum(inner.momentum, fresh)
            directions = _corrected(directions, at_last, recursion.inner, weight)
            recursion = recursion._replace(inner=directions, inner_point=(x, z, d))
        z, d, optimizer = paired_step(
            oracle.problem, scheme, inner.optimizer, directions, optimizer, x, z, d, sigma
        )
        return _Moved(z, d, optimizer, recursion, directions, None, never)

    never, directions = jnp.asarray(False), (zeros(state.z), zeros(state.d))
    optimizer = _unpacked(state.inner, inner.optimizer.init, state.z, state.d)
    start = _Moved(state.z, state.d, optimizer, state.recursion, directions, None, never)
    return inner.repeat(oracle, body, start)


def one_after_the_other(
    oracle: Oracle, inner: _Inner, state: State, sigma: jax.Array
) -> tuple[Tree, _Moved]:
    """K steps of z, then K of d at the new z: the upper level is linearised once, where the
    hypergradient, which is returned too, is taken.
    """
    x, optimizer = state.x, inner.optimizer

    def move_z(carry, k, oracle):
        z, of_z, _ = carry
        u_z = oracle.lower_y(x, z)
        change, of_z = optimizer.update_z(u_z, of_z, z)
        return add(z, change), of_z, u_z

    def move_d(carry, k, oracle):
        d, of_d, *_ = carry
        curvature = cross_term(oracle, x, z, d, sigma, of_y=True)
        u_d = add(c, curvature)
        change, of_d = optimizer.update_d(u_d, of_d, d, z)
        return add(d, change), of_d, u_d, dot(d, curvature) < 0

    start = _unpacked(state.inner, optimizer.init, state.z, state.d)
    z, middle, u_z = inner.repeat(oracle, move_z, (state.z, start, zeros(state.z)))
    upper_x, c = oracle.upper_gradients(x, z)
    start = (state.d, middle, zeros(state.d), jnp.asarray(False))
    d, end, u_d, down = inner.repeat(oracle, move_d, start)
    h = add(upper_x, cross_term(oracle, x, z, d, sigma))
    return h, _Moved(z, d, end, None, (u_z, u_d), c, down)


def _doubtful(
    oracle: Oracle, x: Tree, z: Tree, d: Tree, u_z: Tree, residual_d: jax.Array, c: Tree
) -> jax.Array:
    """Whether h is not known to a half; see `step`. The curvature that d has met is one of z's, and
    the only one at hand.
    """
    pull = norm(c)
    inverse = norm(d) / jnp.where(pull > 0, pull, 1.0)
    change = subtract(oracle.upper_y(x, add(z, u_z, -inverse)), c)
    return jnp.maximum(residual_d, norm(change)) > _TRUST * pull


@arguments(
    problem=record(Problem), state=record(State), method=record(Method), sigma=SIGMA, batch=_BATCH
)
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

    * `sigma`, `batch`: as in `step`.
    """
    scheme = scheme_of(method)
    sigma = Sigma.of(sigma, dtype_of(state.x)).at(scheme, state)
    oracle = Oracle(problem, batch)
    return measure(oracle, scheme, state.x, state.z, state.d, sigma).diagnostics


def _corrected(fresh: Tree, at_last: Tree, estimate: Tree, weight: jax.Array) -> Tree:
    """fresh + (1 − weight) (estimate − at_last), where fresh and at_last saw the same batch."""
    return add(fresh, subtract(estimate, at_last), 1 - weight)
