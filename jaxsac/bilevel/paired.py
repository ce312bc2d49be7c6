"""Inner optimisers that move z and d so that all copies z + σ d take the same kind of step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsac import _checks
from jaxsac._arguments import arguments, real, record
from jaxsac.bilevel.problem import Problem, Tree, add, prox_at, scale, subtract, zeros
from jaxsac.bilevel.schemes import Scheme


class PairedOptimizer(NamedTuple):
    """One optimiser for z and d, of functions like optax's: the step of d must be linear in u_d,
    and the same in kind as that of z.

    z moves first, and the z of `update_d` is the one at which u_d was taken.
    """

    init: Callable[[Tree, Tree], Any]  # (z, d) -> state
    update_z: Callable[[Tree, Any, Tree], tuple[Tree, Any]]  # (u_z, state, z) -> (step, state)
    # (u_d, state, d, z) -> (step, state)
    update_d: Callable[[Tree, Any, Tree, Tree], tuple[Tree, Any]]  # likewise


Inner = PairedOptimizer | optax.GradientTransformation | None
INNER = record(optax.GradientTransformation, PairedOptimizer)


def linear(optimizer: optax.GradientTransformation) -> PairedOptimizer:
    """Apply a linear optax optimiser (SGD, momentum, schedules, weight decay) to z and d: so y =
    z + σ d takes its steps exactly.
    """

    def init(z, d):
        return optimizer.init(z), optimizer.init(d)

    def update(u, state, variable):
        with jax.numpy_dtype_promotion("standard"):  # optax does not pass the strict setting
            return optimizer.update(u, state, variable)

    def update_z(u, state, z):
        step, of_z = update(u, state[0], z)
        return step, (of_z, state[1])

    def update_d(u, state, d, z):
        step, of_d = update(u, state[1], d)
        return step, (state[0], of_d)

    return PairedOptimizer(init, update_z, update_d)


class _Moments(NamedTuple):
    num_steps: jax.Array
    mean: Tree


class _AdamState(NamedTuple):
    of_z: _Moments
    of_d: _Moments
    square: Tree
    largest: Tree


@arguments(
    learning_rate=real(low=0), b1=real(low=0, below=1), b2=real(low=0, below=1), eps=real(low=0)
)
def paired_adam(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> PairedOptimizer:
    """Adam whose preconditioner, taken from z's gradients, is shared by all copies, so that
    adaptive inner steps keep the pairing.

        step = −learning_rate · mean / (√largest + eps)

    with the running maximum `largest` of the bias-corrected mean square of u_z. The maximum
    (AMSGrad) keeps the steps of d bounded when z has converged and its gradients vanish. Adam as it
    comes from optax would give each copy its own preconditioner, and their difference, divided by
    σ, would be noise.

    * `learning_rate`, `eps`: ≥ 0; `b1`, `b2`: in [0, 1); as in `optax.adam`.

    Source: Kingma and Ba 2015; Reddi et al. 2018.
    """

    def mixed(decay, old, new):
        decay = jnp.asarray(decay, new.dtype)
        return decay * old + (1 - decay) * new

    def corrected(leaf, decay, num_steps):
        return leaf / (1 - jnp.asarray(decay, leaf.dtype) ** num_steps.astype(leaf.dtype))

    def init(z, d):
        zero = zeros(z)
        return _AdamState(
            _Moments(jnp.int32(0), zero), _Moments(jnp.int32(0), zeros(d)), zero, zero
        )

    def advance(u, moments, largest):
        mean = jax.tree.map(lambda old, new: mixed(b1, old, new), moments.mean, u)
        num_steps = moments.num_steps + 1

        def step(m, v):
            rate, least = (jnp.asarray(number, m.dtype) for number in (learning_rate, eps))
            size = jnp.sqrt(jnp.broadcast_to(v, m.shape)) + least
            return -rate * corrected(m, b1, num_steps) / size

        return jax.tree.map(step, mean, largest), _Moments(num_steps, mean)

    def update_z(u, state, z):
        square = jax.tree.map(lambda old, new: mixed(b2, old, new**2), state.square, u)
        num_steps = state.of_z.num_steps + 1
        largest = jax.tree.map(
            lambda old, new: jnp.maximum(old, corrected(new, b2, num_steps)), state.largest, square
        )
        step, of_z = advance(u, state.of_z, largest)
        return step, _AdamState(of_z, state.of_d, square, largest)

    def update_d(u, state, d, z):
        step, of_d = advance(u, state.of_d, state.largest)
        return step, state._replace(of_d=of_d)

    return PairedOptimizer(init, update_z, update_d)


def paired_step(
    problem: Problem,
    scheme: Scheme,
    inner: PairedOptimizer,
    directions: tuple[Tree, Tree],
    state: Any,
    x: Tree,
    z: Tree,
    d: Tree,
    sigma: Any,
) -> tuple[Tree, Tree, Any]:
    """Move z and d together. With a `prox_y` plain SGD takes the proximal gradient step of each
    copy.
    """
    directions = proximal_directions(
        problem, scheme, directions, x, z, d, sigma, lambda: _first_rate(inner, z, d)
    )
    step_z, state = inner.update_z(directions[0], state, z)
    step_d, state = inner.update_d(directions[1], state, d, z)
    return add(z, step_z), add(d, step_d), state


def proximal_directions(
    problem: Problem,
    scheme: Scheme,
    directions: tuple[Tree, Tree],
    x: Tree,
    z: Tree,
    d: Tree,
    sigma: Any,
    rate: Callable[[], jax.Array],
) -> tuple[Tree, Tree]:
    """What plays the part of gradients beside a nonsmooth term: [y − prox(y − rate u)] / rate of
    each copy, in the coordinates (z, d).

    It vanishes where each copy is a minimiser, whatever the rate (Beck 2017, section 10.3), and is
    the gradient u without a `prox_y`.
    """
    if problem.prox_y is None:
        return directions
    step = rate()
    new = scheme.on_copies(
        prox_at(problem, x, step), add(z, directions[0], -step), add(d, directions[1], -step), sigma
    )
    return scale(subtract(z, new[0]), 1 / step), scale(subtract(d, new[1]), 1 / step)


def _first_rate(inner: PairedOptimizer, z: Tree, d: Tree) -> jax.Array:
    """How far the first step goes on a gradient of ones: the rate of plain SGD, and one that suits
    the others.
    """
    steps, _ = inner.update_z(
        jax.tree.map(jnp.ones_like, z), inner.init(zeros(z), zeros(d)), zeros(z)
    )
    return jnp.stack([jnp.min(-step) for step in jax.tree.leaves(steps)]).min()


def as_paired(inner: PairedOptimizer | optax.GradientTransformation, y: Tree) -> PairedOptimizer:
    """The paired form of `inner`; an optax optimiser that is not linear in the gradients is an
    error, since it would break the pairing.
    """
    if isinstance(inner, PairedOptimizer):
        return inner
    _checks.require(
        _is_linear(inner, y),
        "inner is not linear in the gradients, so the lower-level copies would take different steps"
        " and lose their pairing: use optax.sgd (with momentum or nesterov), or"
        " bilevel.paired_adam for an adaptive one.",
    )
    return linear(inner)


def require_inner(problem: Problem, inner: Inner) -> None:
    """An error unless something can take the proximal steps of the problem."""
    _checks.require(
        problem.prox_y is None or inner is not None,
        "prox_y needs an inner optimiser that takes proximal steps: pass inner=optax.sgd(rate) with"
        " rate below 1 / curvature.",
    )


_at_trace_time = jax.ensure_compile_time_eval


def _is_linear(optimizer: optax.GradientTransformation, y: Tree) -> bool:
    """Whether doubling the gradients (and the parameters) doubles two steps; one of unknown numbers
    (traced rates) is believed.
    """
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), y)
    second = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), y)
    with _at_trace_time(), jax.numpy_dtype_promotion("standard"):

        def steps(factor):
            params = scale(jax.tree.map(jnp.asarray, tree), factor)
            state = optimizer.init(params)
            for gradient in (tree, second):
                update, state = optimizer.update(
                    scale(jax.tree.map(jnp.asarray, gradient), factor), state, params
                )
            return update

        once, twice = steps(1.0), steps(2.0)
    if not _checks.is_concrete(once, twice):
        return True
    pairs = zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True)
    return all(
        np.allclose(2 * np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-30) for a, b in pairs
    )
