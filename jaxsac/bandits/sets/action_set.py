"""What an action set must answer, and the answers that follow from its support function alone."""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax


class Selection(NamedTuple):
    """A support chosen by an oracle; s is its size and d the dimension.

    `indices` int32 [s] in the order of the choice (-1 where no coordinate was left), `mask` bool
    [d], `value` f(S) = max <theta, x> over actions supported in S, and `gap` the smallest lead of a
    chosen coordinate over the second best one (+inf where there was no other).
    """

    indices: jax.Array
    mask: jax.Array
    value: jax.Array
    gap: jax.Array


class ActionSet(eqx.Module):
    """A compact convex set X in R^d that contains the origin: what a bandit algorithm plays from.

    A set of one's own defines `support` and `argmax`; the rest has defaults. `theta` is [d] and
    `mask` bool [d] names the coordinates that may be non-zero (None: all). All methods are pure,
    differentiable where the answer is smooth, and unbatched.
    """

    # : f(S) is an increasing function of a sum over S of `scores(theta)`: the largest scores are
    # the best support.
    modular: ClassVar[bool] = False
    # : X is strongly convex: actions move with theta in a Lipschitz way and the exploitation of a
    # cycle may be as long as its index.
    strongly_convex: ClassVar[bool] = False
    #: f(S)^2 is a quadratic form of theta_S.
    quadratic: ClassVar[bool] = False

    @property
    def greedy_is_exact(self) -> bool:
        """Whether the greedy support is the best one for every theta and every sparsity."""
        return False

    def support(self, theta: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """max <theta, x> over x in X with x = 0 off the mask; 0 at least, since the origin is in
        X.
        """
        raise TypeError(f"{type(self).__name__} must define support(theta, mask).")

    def argmax(self, theta: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """An action [d] that attains `support`; the origin where theta is zero on the mask."""
        return jax.grad(self.support)(theta, mask)  # the theorem of Danskin

    def gauge(self, x: jax.Array) -> jax.Array:
        """The least t >= 0 with x in t X: at most 1 exactly for the actions in X."""
        raise ValueError(
            f"{type(self).__name__} has no gauge, which scales a dense exploration basis into it: use basis='standard'."
        )

    def norm_bound(self, sparsity: int, dimension: int) -> jax.Array | float:
        """A bound on ||x||_2 over the s-sparse actions, which is the Lipschitz constant of f in
        theta.
        """
        raise ValueError(f"{type(self).__name__} must define norm_bound(sparsity, dimension).")

    def reach(self, dimension: int, dtype) -> jax.Array:
        """For each axis the largest multiple [d] of its unit vector in X, negative where the
        negative side reaches further.
        """
        axes = jnp.eye(dimension, dtype=dtype)
        up = jax.vmap(lambda axis: self.support(axis, axis > 0))(axes)
        down = jax.vmap(lambda axis: self.support(-axis, axis > 0))(axes)
        return jnp.where(up >= down, up, -down)

    def restrict(self, indices: jax.Array, dimension: int) -> "ActionSet":
        """The set of actions supported in `indices` [s], in their own coordinates; an index -1 is a
        coordinate where theta must be zero.
        """
        return Slice(self, indices, dimension)

    def extended(self, theta: jax.Array, chosen: jax.Array) -> jax.Array:
        """f(chosen + i) for every coordinate i, [d]."""
        return jax.vmap(lambda one: self.support(theta, chosen | one))(
            jnp.eye(theta.shape[0], dtype=bool)
        )

    def greedy(self, theta: jax.Array, sparsity: int, mask: jax.Array | None = None) -> Selection:
        """Add the coordinate of largest f, `sparsity` times; ties go to the lowest index."""
        dimension = theta.shape[0]
        available = jnp.ones(dimension, bool) if mask is None else mask

        def step(k, carry):
            indices, chosen, gap = carry
            best, lead, left = pick(self.extended(theta, chosen), available & ~chosen)
            return (
                indices.at[k].set(best),
                chosen | (left & (jnp.arange(dimension, dtype=jnp.int32) == best)),
                jnp.minimum(gap, lead),
            )

        nothing = (
            jnp.full(sparsity, -1, jnp.int32),
            jnp.zeros(dimension, bool),
            jnp.asarray(jnp.inf, theta.dtype),
        )
        indices, chosen, gap = lax.fori_loop(0, sparsity, step, nothing)
        return Selection(indices, chosen, self.support(theta, chosen), gap)


def pick(values: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The index of the largest candidate value (-1 if there is no candidate), its lead over the
    next one, and whether one was left.
    """
    values = jnp.where(candidates, values, -jnp.inf)
    best = jnp.argmax(values).astype(jnp.int32)
    second = jnp.max(
        jnp.where(jnp.arange(values.shape[0], dtype=jnp.int32) == best, -jnp.inf, values)
    )
    left = jnp.any(candidates)
    lead = jnp.where(
        jnp.sum(candidates) > 1,
        values[best] - jnp.where(jnp.isneginf(second), 0.0, second),
        jnp.inf,
    ).astype(values.dtype)
    return jnp.where(left, best, -1), lead, left


class Slice(ActionSet):
    """The actions of `whole` that are supported in `indices` [s], as a set in R^s."""

    whole: ActionSet
    indices: jax.Array
    dimension: int = eqx.field(static=True)

    def support(self, theta, mask=None):
        return self.whole.support(*self._embed(theta, mask))

    def argmax(self, theta, mask=None):
        action = self.whole.argmax(*self._embed(theta, mask))
        return jnp.where(self.indices >= 0, action[self.indices], 0.0).astype(theta.dtype)

    def _embed(self, theta, mask):
        keep = (self.indices >= 0) if mask is None else (self.indices >= 0) & mask
        place = jnp.where(keep, self.indices, self.dimension)
        full = jnp.zeros(self.dimension, theta.dtype).at[place].set(theta, mode="drop")
        return full, jnp.zeros(self.dimension, bool).at[place].set(True, mode="drop")


def masked(theta: jax.Array, mask: jax.Array | None) -> jax.Array:
    return theta if mask is None else jnp.where(mask, theta, jnp.zeros_like(theta))


def like(value, theta: jax.Array) -> jax.Array:
    """`value` in the dtype of theta, so that a set built from Python numbers or float64 arrays
    serves both precisions.
    """
    return jnp.asarray(value).astype(theta.dtype)
