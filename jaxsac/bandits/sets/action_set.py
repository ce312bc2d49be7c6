"""What an action set must answer, and the answers that follow from its support function alone."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import record
from jaxsac.solution import Hashable, register

FINITE: dict[str, Any] = {"above": -float("inf"), "below": float("inf")}


@register
class Selection(NamedTuple):
    """A support chosen by an oracle; s is its size and d the dimension."""

    indices: jax.Array  # int32 [s] in the order of the choice, −1 where no coordinate was left
    mask: jax.Array  # bool [d]
    value: jax.Array  # [], f(S) = max ⟨theta, x⟩ over actions supported in S
    gap: jax.Array  # [], least lead of a chosen coordinate over the next; +inf without another


class ActionSet(Hashable):
    """A compact convex set X in R^d that contains the origin: what a bandit algorithm plays from.

    A set of one's own defines `support` and `argmax`; the rest has defaults (where the largest of
    some scores are the best support, see `Modular`). `theta` is [d] and `mask` bool [d] names the
    coordinates that may be non-zero (None: all). All methods are pure, differentiable where the
    answer is smooth, and unbatched.
    """

    # Strongly convex: actions move with theta in a Lipschitz way, and the exploitation of a cycle
    # may be as long as its index.
    strongly_convex: ClassVar[bool] = False  # whether X is
    quadratic: ClassVar[bool] = False  # f(S)² is a quadratic form of theta_S
    ranked: ClassVar[bool] = False  # the s largest `scores` are always the best support
    greedy_is_exact: ClassVar[bool] = False  # the greedy support is, for every theta and sparsity

    @property
    def dimension(self) -> int | None:
        """d, or None for a set that there is in every dimension."""
        return None

    def support(self, theta: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """max ⟨theta, x⟩ over x ∈ X with x = 0 off the mask; at least 0, at the origin."""
        raise TypeError(f"{type(self).__name__} must define support(theta, mask).")

    def argmax(self, theta: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """An action [d] that attains `support`; the origin where theta is zero on the mask."""
        return jax.grad(self.support)(theta, mask)  # the theorem of Danskin

    def gauge(self, x: jax.Array) -> jax.Array:
        """The least t ≥ 0 with x ∈ t X: at most 1 exactly for the actions in X."""
        raise ValueError(
            f"{type(self).__name__} has no gauge, which scales a dense exploration basis into it:"
            " use basis='standard'."
        )

    def norm_bound(self, sparsity: int, dimension: int) -> jax.Array | float:
        """A bound on ‖x‖₂ over the s-sparse actions, the Lipschitz constant of f in theta."""
        raise ValueError(f"{type(self).__name__} must define norm_bound(sparsity, dimension).")

    def action_slope(self, dimension: int) -> jax.Array | float:
        """J with ‖x(u) − x(v)‖₂ ≤ J ‖u − v‖₂ for the maximisers of unit vectors u and v, supported
        alike: the paper's equation 7; infinite where they jump.
        """
        return float("inf")

    def ratio_bound(self, sparsity: int, dimension: int) -> jax.Array | float:
        """A lower bound on the `submodularity_ratio` for every theta: the paper's equation 15. 1
        where greedy is exact, as f is submodular on all such sets here; 0, nothing, by default,
        since there are convex sets of ratio 0.
        """
        return 1.0 if self.greedy_is_exact else 0.0

    def scores(self, theta: jax.Array) -> jax.Array:
        """What ranks the coordinates of a `ranked` set, [d]: it moves by at most `score_slope`
        times an error of theta's coordinate.
        """
        return jnp.abs(theta)

    def score_slope(self, theta: jax.Array) -> jax.Array:
        """The largest slope [] of a score in its coordinate of theta."""
        return jnp.ones((), theta.dtype)

    def reach(self, dimension: int, dtype) -> jax.Array:
        """For each axis the largest multiple [d] of its unit vector in X, negative where the
        negative side reaches further.
        """
        axes = jnp.eye(dimension, dtype=dtype)
        up = jax.vmap(lambda axis: self.support(axis, axis > 0))(axes)
        down = jax.vmap(lambda axis: self.support(-axis, axis > 0))(axes)
        return jnp.where(up >= down, up, -down)

    def restrict(self, indices: jax.Array, dimension: int) -> "ActionSet":
        """The set of actions supported in `indices` [s], in their own coordinates; an index −1 is a
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
                jnp.where(gap <= lead, gap, lead),
            )

        nothing = (*no_choice(sparsity, dimension), jnp.asarray(jnp.inf, theta.dtype))
        indices, chosen, gap = _loops.fori_loop(0, sparsity, step, nothing)
        return Selection(indices, chosen, self.support(theta, chosen), gap)


def pick(values: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The index of the largest candidate value (−1 if there is no candidate), its lead over the
    next one, and whether one was left.
    """
    values = jnp.where(candidates, values, -jnp.inf)
    best = jnp.argmax(values).astype(jnp.int32)
    # By its place, not by `max`: what was chosen by order is a constant of differentiation.
    rest = jnp.where(jnp.arange(values.shape[0], dtype=jnp.int32) == best, -jnp.inf, values)
    second = rest[jnp.argmax(rest)]
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
    whole_dimension: int = eqx.field(static=True)

    def support(self, theta, mask=None):
        return self.whole.support(*self._embed(theta, mask))

    def argmax(self, theta, mask=None):
        return take(self.whole.argmax(*self._embed(theta, mask)), self.indices)

    def _embed(self, theta, mask):
        indices = self.indices if mask is None else jnp.where(mask, self.indices, -1)
        available = put(jnp.ones(indices.shape, bool), indices, self.whole_dimension)
        return put(theta, indices, self.whole_dimension), available


def sized(action_set: Any) -> Mapping[str, int]:
    """The d of a set, or of what plays on one, for a declaration; {} where it may be any."""
    action_set = getattr(action_set, "action_set", action_set)
    dimension = getattr(action_set, "dimension", None)
    return {} if dimension is None else {"d": dimension}


a_set = record(ActionSet, sizes=sized)


def check_dimension(action_set: ActionSet, dimension: int, sparsity: int = 1) -> None:
    _checks.require(
        action_set.dimension in (None, dimension),
        f"action_set has dimension d = {action_set.dimension} where theta has {dimension}"
        " coordinates.",
    )
    _checks.require(
        sparsity <= dimension,
        f"sparsity must be at most the dimension {dimension}, got {sparsity}.",
    )


def known(action: jax.Array, *numbers: jax.Array) -> jax.Array:
    """The action, NaN where one of the numbers that it was chosen by is not finite."""
    return jnp.where(all_finite(numbers), action, jnp.nan)


def all_finite(tree: Any) -> jax.Array:
    """Whether no floating array of a tree holds a NaN or an infinity."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def largest(values: jax.Array, axis: int | None = None) -> jax.Array:
    """The largest size along `axis`, 1 where all is zero: numbers over it neither overflow nor
    vanish. A constant to derivatives, rightly so where the answer does not depend on it.
    """
    size = lax.stop_gradient(jnp.max(jnp.abs(values), axis=axis, initial=0.0))
    return jnp.where(size > 0, size, jnp.ones_like(size))


def take(vector: jax.Array, indices: jax.Array) -> jax.Array:
    """The coordinates `indices` [s] of a vector [d]; zero for an index −1."""
    return jnp.where(indices >= 0, vector[indices], jnp.zeros_like(vector[indices]))


def put(values: jax.Array, indices: jax.Array, dimension: int) -> jax.Array:
    """The vector [d] of `values` [s] at `indices` [s] and zeros; an index −1 is left out."""
    place = jnp.where(indices >= 0, indices, dimension)
    return jnp.zeros(dimension, values.dtype).at[place].set(values, mode="drop")


def no_choice(sparsity: int, dimension: int) -> tuple[jax.Array, jax.Array]:
    """The indices [s] and the mask [d] before anything is chosen."""
    return jnp.full(sparsity, -1, jnp.int32), jnp.zeros(dimension, bool)


def masked(theta: jax.Array, mask: jax.Array | None) -> jax.Array:
    """theta with zeros off the mask."""
    return theta if mask is None else jnp.where(mask, theta, jnp.zeros_like(theta))


def like(value, theta: jax.Array) -> jax.Array:
    """`value` in the dtype of theta, so that a set built from Python numbers or float64 arrays
    serves both precisions.
    """
    return jnp.asarray(value).astype(theta.dtype)


def root(value: jax.Array) -> jax.Array:
    """√value with the derivative 0 at 0, and 0 below; NaN stays NaN."""
    positive = value > 0
    rest = jnp.where(jnp.isnan(value), value, jnp.zeros_like(value))
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, jnp.ones_like(value))), rest)
