"""Inner optimisers that move z and d so that all copies z + sigma d take the same kind of step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsac import _checks
from jaxsac.bilevel.problem import Tree, scale


class PairedOptimizer(NamedTuple):
    """`init(z, d) -> state`; `update(u_z, u_d, state, z, d) -> (step of z, step of d, state)`, where the step of d is linear in u_d."""

    init: Callable[[Tree, Tree], Any]
    update: Callable[[Tree, Tree, Any, Tree, Tree], tuple[Tree, Tree, Any]]


def linear(optimizer: optax.GradientTransformation) -> PairedOptimizer:
    """Apply a linear optax optimiser (SGD, momentum, schedules, weight decay) to z and d: so y = z + sigma d takes its steps exactly."""

    def init(z, d):
        return optimizer.init(z), optimizer.init(d)

    def update(u_z, u_d, state, z, d):
        step_z, state_z = optimizer.update(u_z, state[0], z)
        step_d, state_d = optimizer.update(u_d, state[1], d)
        return step_z, step_d, (state_z, state_d)

    return PairedOptimizer(init, update)


class _AdamState(NamedTuple):
    num_steps: jax.Array
    mean_z: Tree
    mean_d: Tree
    square: Tree
    largest: Tree


def paired_adam(learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> PairedOptimizer:
    """Adam whose preconditioner, taken from z's gradients, is shared by all copies, so that adaptive inner steps keep the pairing.

        step = -learning_rate * mean / (sqrt(largest) + eps),   largest = running maximum of the bias-corrected mean square of u_z

    The maximum (AMSGrad) keeps the steps of d bounded when z has converged and its gradients vanish. Adam as it comes from optax would give
    each copy its own preconditioner, and their difference, divided by sigma, would be noise. Kingma & Ba 2015; Reddi et al. 2018.
    """

    def init(z, d):
        zero = jax.tree.map(jnp.zeros_like, z)
        return _AdamState(jnp.int32(0), zero, jax.tree.map(jnp.zeros_like, d), zero, zero)

    def update(u_z, u_d, state, z, d):
        count = state.num_steps + 1

        def corrected(leaf, decay):
            return leaf / (1 - jnp.asarray(decay, leaf.dtype) ** count.astype(leaf.dtype))

        def blend(old, new, decay):
            return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)

        mean_z, mean_d = blend(state.mean_z, u_z, b1), blend(state.mean_d, u_d, b1)
        square = blend(state.square, jax.tree.map(jnp.square, u_z), b2)
        largest = jax.tree.map(lambda old, new: jnp.maximum(old, corrected(new, b2)), state.largest, square)

        def step(mean):
            return jax.tree.map(
                lambda m, v: -learning_rate * corrected(m, b1) / (jnp.sqrt(jnp.broadcast_to(v, m.shape)) + eps), mean, largest
            )

        return step(mean_z), step(mean_d), _AdamState(count, mean_z, mean_d, square, largest)

    return PairedOptimizer(init, update)


def as_paired(inner: PairedOptimizer | optax.GradientTransformation, y: Tree) -> PairedOptimizer:
    """The paired form of `inner`; an optax optimiser that is not linear in the gradients is an error, since it would break the pairing."""
    if isinstance(inner, PairedOptimizer):
        return inner
    _checks.require(
        isinstance(inner, optax.GradientTransformation),
        f"inner must be an optax optimiser or a PairedOptimizer, got {type(inner).__name__}.",
    )
    _checks.require(
        _is_linear(inner, y),
        "inner is not linear in the gradients, so the lower-level copies would take different steps and lose their pairing: "
        "use optax.sgd (with momentum or nesterov), or bilevel.paired_adam for an adaptive one.",
    )
    return linear(inner)


def _is_linear(optimizer: optax.GradientTransformation, y: Tree) -> bool:
    """Whether doubling the gradients (and the parameters) doubles two steps; one of unknown numbers (traced rates) is believed."""
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), y)
    second = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), y)
    with jax.ensure_compile_time_eval():

        def steps(factor):
            params = scale(jax.tree.map(jnp.asarray, tree), factor)
            state = optimizer.init(params)
            for gradient in (tree, second):
                update, state = optimizer.update(scale(jax.tree.map(jnp.asarray, gradient), factor), state, params)
            return update

        once, twice = steps(1.0), steps(2.0)
    if not _checks.is_concrete(once, twice):
        return True
    pairs = zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True)
    return all(np.allclose(2 * np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-30) for a, b in pairs)
