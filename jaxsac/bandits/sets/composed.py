"""Action sets made of others, and from functions of one's own."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, function as a_function, real, size
from jaxsac.bandits.sets.action_set import ActionSet, a_set, check_dimension, masked

A_BOUND = real(low=0, below=float("inf"))
A_MASK = real("d", low=0, high=1, own=True)  # True and False, or 1 and 0


class Product(ActionSet):
    """X₁ × X₂ × ... over consecutive blocks of coordinates of the given `sizes`: f and its
    maximisers add up.

    Greedy is exact if it is on every part: its steps then gain less and less within a part, as on
    all sets here that say so, and s steps of the largest gains are the best division of s among the
    parts.
    """

    parts: tuple[ActionSet, ...]  # in order
    sizes: tuple[int, ...] = eqx.field(static=True)  # coordinates of each

    @arguments(
        parts=anything("action sets, one or more"),
        sizes=anything("sizes, Python ints ≥ 1, one for each part"),
    )
    def __init__(self, parts: Sequence[ActionSet], sizes: Sequence[int]):
        listed = isinstance(parts, tuple | list) and isinstance(sizes, tuple | list)
        _checks.require(
            listed and len(parts) == len(sizes) > 0,
            "parts and sizes must be lists of one size for each part.",
        )
        self.parts = tuple(a_set.take("parts", part) for part in parts)
        self.sizes = tuple(size(1).take("sizes", each) for each in sizes)
        for part, each in zip(self.parts, self.sizes, strict=True):
            check_dimension(part, each)

    @property
    def dimension(self):
        return sum(self.sizes)

    @property
    def greedy_is_exact(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.greedy_is_exact for part in self.parts)

    def _blocks(self, vector):
        check_dimension(self, vector.shape[0])
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
        gauges = jnp.stack(
            [part.gauge(block) for part, block in zip(self.parts, self._blocks(x), strict=True)]
        )
        return gauges[jnp.argmax(gauges)]

    def norm_bound(self, sparsity, dimension):
        dtype = jnp.result_type(float)
        radii = [
            jnp.asarray(part.norm_bound(min(sparsity, n), n)).astype(dtype)
            for part, n in zip(self.parts, self.sizes, strict=True)
        ]
        return jnp.sqrt(jnp.sum(jnp.stack(radii) ** 2))

    def ratio_bound(self, sparsity, dimension):
        each = zip(self.parts, self.sizes, strict=True)
        bounds = [jnp.asarray(part.ratio_bound(min(sparsity, n), n)) for part, n in each]
        return jnp.min(jnp.stack(bounds))


class Masked(ActionSet):
    """The actions of `whole` that use only the coordinates of `available` [d], True or 1; what is
    true of `whole` stays true.
    """

    whole: ActionSet  # in R^d
    available: jax.Array  # bool [d]

    @arguments(whole=a_set, available=A_MASK)
    def __init__(self, whole: ActionSet, available: jax.Array):
        self.whole, self.available = whole, available > 0

    @property
    def dimension(self):
        return self.available.shape[0]

    greedy_is_exact = property(lambda self: self.whole.greedy_is_exact)  # pyright: ignore[reportAssignmentType]
    ranked = property(lambda self: self.whole.ranked)  # pyright: ignore[reportAssignmentType]
    strongly_convex = property(lambda self: self.whole.strongly_convex)  # pyright: ignore[reportAssignmentType]
    quadratic = property(lambda self: self.whole.quadratic)  # pyright: ignore[reportAssignmentType]

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

    def action_slope(self, dimension):
        return self.whole.action_slope(dimension)

    def ratio_bound(self, sparsity, dimension):
        return self.whole.ratio_bound(sparsity, dimension)

    def scores(self, theta):
        return masked(self.whole.scores(theta), self.available)

    def score_slope(self, theta):
        return self.whole.score_slope(theta)

    def reach(self, dimension, dtype):
        return masked(self.whole.reach(dimension, dtype), self.available)

    def restrict(self, indices, dimension):
        kept = (indices >= 0) & self.available[indices]
        return Masked(self.whole.restrict(jnp.where(kept, indices, -1), dimension), kept)

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
    gauge_function: Callable[[jax.Array], jax.Array] | None = eqx.field(static=True)

    @arguments(
        function=a_function("(theta [d], mask [d]) -> scalar"),
        bound=A_BOUND,
        gauge_function=a_function("(x [d]) -> scalar"),
    )
    def __init__(
        self, function: Callable[..., Any], bound: Any, gauge_function: Callable | None = None
    ):
        self.function, self.bound, self.gauge_function = function, bound, gauge_function

    def support(self, theta, mask=None):
        return self.function(theta, jnp.ones(theta.shape, bool) if mask is None else mask)

    def gauge(self, x):
        return super().gauge(x) if self.gauge_function is None else self.gauge_function(x)

    def norm_bound(self, sparsity, dimension):
        return self.bound
