"""Action sets made of others, and from functions of one's own."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks, _loops
from jaxsac.bandits.sets.action_set import ActionSet, like, masked


class Product(ActionSet):
    """X₁ × X₂ × ... over consecutive blocks of coordinates of the given `sizes`: f and its
    maximisers add up.

    Greedy is exact if it is on every part: its steps then gain less and less within a part, as on
    all sets here that say so, and s steps of the largest gains are the best division of s among the
    parts.
    """

    parts: tuple[ActionSet, ...]  # in order
    sizes: tuple[int, ...] = eqx.field(static=True)  # coordinates of each

    def __init__(self, parts: Sequence[ActionSet], sizes: Sequence[int]):
        _checks.require(len(parts) == len(sizes) > 0, "Product needs one size for each part.")
        self.parts = tuple(parts)
        self.sizes = tuple(_checks.static_integer("sizes", size, 1) for size in sizes)

    @property
    def greedy_is_exact(self):
        return all(part.greedy_is_exact for part in self.parts)

    def _blocks(self, vector):
        _checks.require(
            vector.shape[0] == sum(self.sizes),
            f"theta must have {sum(self.sizes)} coordinates, as the sizes of Product say.",
        )
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return [vector[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def _each(self, method, theta, mask):
        masks = [None] * len(self.parts) if mask is None else self._blocks(mask)
        return [
            getattr(part, method)(block, m)
            for part, block, m in zip(self.parts, self._blocks(theta), masks, strict=True)
        ]

    def support(self, theta, mask=None):
        return sum(self._each("support", theta, mask), jnp.zeros((), theta.dtype))

    def argmax(self, theta, mask=None):
        return jnp.concatenate(self._each("argmax", theta, mask))

    def extended(self, theta, chosen):
        before = self._each("support", theta, chosen)
        after = self._each("extended", theta, chosen)
        return jnp.concatenate(
            [values + (sum(before) - own) for values, own in zip(after, before, strict=True)]
        )

    def gauge(self, x):
        return jnp.stack(
            [part.gauge(block) for part, block in zip(self.parts, self._blocks(x), strict=True)]
        ).max()

    def norm_bound(self, sparsity, dimension):
        dtype = jnp.result_type(float)
        radii = [
            jnp.asarray(part.norm_bound(min(sparsity, n), n)).astype(dtype)
            for part, n in zip(self.parts, self.sizes, strict=True)
        ]
        return jnp.sqrt(jnp.sum(jnp.stack(radii) ** 2))


class Masked(ActionSet):
    """The actions of `whole` that use only the coordinates of `available` bool [d]."""

    whole: ActionSet  # in R^d
    available: jax.Array  # bool [d]

    def __init__(self, whole: ActionSet, available: jax.Array):
        self.whole = whole
        self.available = jnp.asarray(available).astype(bool)

    @property
    def greedy_is_exact(self):
        return self.whole.greedy_is_exact

    def _and(self, mask):
        return self.available if mask is None else self.available & mask

    def support(self, theta, mask=None):
        return self.whole.support(theta, self._and(mask))

    def argmax(self, theta, mask=None):
        return self.whole.argmax(theta, self._and(mask))

    def gauge(self, x):
        return jnp.where(jnp.any((x != 0) & ~self.available), jnp.inf, self.whole.gauge(x))

    def norm_bound(self, sparsity, dimension):
        return self.whole.norm_bound(sparsity, dimension)

    def greedy(self, theta, sparsity, mask=None):
        return self.whole.greedy(theta, sparsity, self._and(mask))


class FromSupport(ActionSet):
    """A set given by its support function: `function(theta, mask)` = max ⟨theta, x⟩ over x ∈ X
    with x = 0 off the mask, differentiable.

    Actions are its derivatives in theta (the theorem of Danskin). `bound` is at least ‖x‖₂ over
    the set; `gauge_function(x)` is needed for dense exploration bases only. The functions are
    compared by identity: define them once, outside loops.
    """

    # `function`: (theta or x [d], mask [d]) -> [] or [d], as above
    function: Callable[[jax.Array, jax.Array], jax.Array] = eqx.field(static=True)
    bound: jax.Array | float  # []
    # `gauge_function`: x [d] -> []
    gauge_function: Callable[[jax.Array], jax.Array] | None = eqx.field(static=True, default=None)

    def support(self, theta, mask=None):
        return self.function(theta, jnp.ones(theta.shape, bool) if mask is None else mask)

    def gauge(self, x):
        return super().gauge(x) if self.gauge_function is None else self.gauge_function(x)

    def norm_bound(self, sparsity, dimension):
        return self.bound


class FromProjection(ActionSet):
    """A set given by its Euclidean projection: `function(x, mask)` projects on {x ∈ X : x = 0 off
    the mask}.

    The maximiser is approached by `num_steps` projected steps along theta, so f is a lower bound
    that is attained by a feasible action. `bound` is at least ‖x‖₂ over the set.
    """

    # `function`: (theta or x [d], mask [d]) -> [] or [d], as above
    function: Callable[[jax.Array, jax.Array], jax.Array] = eqx.field(static=True)
    bound: jax.Array | float  # []
    num_steps: int = eqx.field(static=True, default=100)  # projected steps

    def argmax(self, theta, mask=None):
        keep = jnp.ones(theta.shape, bool) if mask is None else mask
        theta = lax.stop_gradient(masked(theta, mask))
        size = jnp.sqrt(jnp.sum(theta**2))
        direction = like(self.bound, theta) * theta / jnp.where(size > 0, size, 1.0)
        return _loops.fori_loop(
            0,
            self.num_steps,
            lambda _, x: self.function(x + direction, keep),
            self.function(jnp.zeros_like(theta), keep),
        )

    def support(self, theta, mask=None):
        return jnp.maximum(
            jnp.sum(masked(theta, mask) * lax.stop_gradient(self.argmax(theta, mask))), 0.0
        )

    def norm_bound(self, sparsity, dimension):
        return self.bound
