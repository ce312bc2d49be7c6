"""Action sets with closed forms in which f(S) is a function of a sum or a maximum over S: greedy
and exact agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac._arguments import arguments, either, real
from jaxsac.bandits.sets.action_set import ActionSet, Selection, largest, like, masked, put, root

POSITIVE = {"above": 0, "below": float("inf")}
RADIUS = real(**POSITIVE)


class Modular(ActionSet):
    """A set with f(S) = value(Σ_{i∈S} weights_i), weights ≥ 0 and value increasing: the s largest
    weights are the best support, and so are the s largest `scores`, which `apsee` needs.

    A set of one's own defines `weights`, `value` and `argmax`.
    """

    ranked = greedy_is_exact = True

    def weights(self, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weights [d], and the scale [] that `value` needs."""
        raise TypeError(f"{type(self).__name__} must define weights(theta).")

    def value(self, total: jax.Array, scale: jax.Array) -> jax.Array:
        """f of a sum of weights."""
        raise TypeError(f"{type(self).__name__} must define value(total, scale).")

    def support(self, theta, mask=None):
        weights, scale = self.weights(masked(theta, mask))
        return self.value(jnp.sum(weights), scale)

    def greedy(self, theta, sparsity, mask=None):
        dimension = theta.shape[0]
        available = jnp.ones(dimension, bool) if mask is None else mask
        weights, scale = self.weights(masked(theta, mask))
        ranked, order = lax.top_k(jnp.where(available, weights, -1.0), min(sparsity + 1, dimension))
        ranked = jnp.maximum(jnp.pad(ranked, (0, sparsity + 1 - ranked.shape[0])), 0.0)
        steps = jnp.arange(sparsity, dtype=jnp.int32)
        number = jnp.sum(available, dtype=jnp.int32)
        before = jnp.cumsum(ranked[:-1]) - ranked[:-1]
        leads = self.value(before + ranked[:-1], scale) - self.value(before + ranked[1:], scale)
        leads = jnp.where(steps + 1 < number, leads, jnp.inf).astype(theta.dtype)
        gap = leads[jnp.argmin(leads)]
        indices = jnp.where(steps < number, order[:sparsity], -1).astype(jnp.int32)
        chosen = put(jnp.ones(sparsity, bool), indices, dimension)
        return Selection(indices, chosen, self.support(theta, chosen), gap)


def _power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """base^exponent for base ≥ 0, with derivative zero at zero."""
    positive = base > 0
    return jnp.where(
        positive, jnp.where(positive, base, 1.0) ** exponent, jnp.where(jnp.isnan(base), base, 0.0)
    )


class WithRadius(ActionSet):
    """A set that is alike on all coordinates and reaches `radius` along each of them, as do its
    restrictions.
    """

    radius: jax.Array | float = 1.0  # [], > 0

    def norm_bound(self, sparsity, dimension):
        return self.radius

    def reach(self, dimension, dtype):
        return jnp.full(dimension, self.radius, dtype)

    def restrict(self, indices, dimension):
        return self


@arguments(radius=RADIUS)
class Ball(WithRadius, Modular):
    """{x : ‖x‖₂ ≤ radius}: f(S) = radius ‖theta_S‖₂, attained at radius theta_S / ‖theta_S‖₂.

    `radius` > 0. Source: "Learning to Sparsify Stochastic Linear Bandits" (arXiv 2605.10151),
    Proposition 2.
    """

    strongly_convex = quadratic = True

    def weights(self, theta):
        scale = largest(theta)
        return (theta / scale) ** 2, scale * like(self.radius, theta)

    def value(self, total, scale):
        return scale * root(total)

    def argmax(self, theta, mask=None):
        theta = masked(theta, mask)
        theta = theta / largest(theta)
        total = jnp.sum(theta**2)
        return like(self.radius, theta) * theta / jnp.where(total > 0, root(total), 1.0)

    def gauge(self, x):
        scale = largest(x)
        return scale * root(jnp.sum((x / scale) ** 2)) / like(self.radius, x)

    def action_slope(self, dimension):
        return self.radius


class LpBall(WithRadius, Modular):
    """{x : ‖x‖_p ≤ radius}, 1 < p < inf: f(S) = radius ‖theta_S‖_q with 1/p + 1/q = 1,
    attained where x_i ∝ sign(theta_i) |theta_i|^(q−1).

    f^q is a sum over S, so the s largest |theta_i| are the best support. Strongly convex for p ≤ 2
    only, which decides nothing here: the length of the exploitation is the algorithm's choice. For
    p = 1 there is CrossPolytope, for p = ∞ Box.
    """

    p: jax.Array | float  # [], in (1, ∞)  # pyright: ignore[reportGeneralTypeIssues]

    @arguments(p=real(above=1, below=float("inf")), radius=RADIUS)
    def __init__(self, p: jax.Array | float, radius: jax.Array | float = 1.0):
        self.p, self.radius = p, radius

    def _dual(self, theta):
        p = like(self.p, theta)
        return p / (p - 1.0)

    def weights(self, theta):
        scale = largest(theta)
        return _power(jnp.abs(theta) / scale, self._dual(theta)), scale * like(self.radius, theta)

    def value(self, total, scale):
        p = like(self.p, total)
        return scale * _power(total, (p - 1.0) / p)

    def argmax(self, theta, mask=None):
        theta = masked(theta, mask)
        dual = self._dual(theta)
        size = jnp.abs(theta) / largest(theta)
        norm = jnp.sum(_power(size, dual)) ** ((dual - 1.0) / dual)
        return (
            like(self.radius, theta)
            * jnp.sign(theta)
            * _power(size, dual - 1.0)
            / jnp.where(norm > 0, norm, 1.0)
        )

    def gauge(self, x):
        scale, p = largest(x), like(self.p, x)
        return (
            scale * _power(jnp.sum(_power(jnp.abs(x) / scale, p)), 1.0 / p) / like(self.radius, x)
        )

    def norm_bound(self, sparsity, dimension):
        p = jnp.asarray(
            self.p, jnp.result_type(float)
        )  # the l_2 norm is largest at a vertex for p ≤ 2, on the diagonal for p > 2
        return jnp.asarray(self.radius, p.dtype) * float(sparsity) ** jnp.maximum(
            0.5 - 1.0 / p, 0.0
        )

    def action_slope(self, dimension):
        p = jnp.asarray(self.p, jnp.result_type(float))
        slope = jnp.asarray(self.radius, p.dtype) * float(dimension) ** (1.0 / p - 0.5) / (p - 1.0)
        return jnp.where(p <= 2.0, slope, jnp.inf)


class Box(Modular):
    """{x : low ≤ x ≤ high} with low ≤ 0 ≤ high, scalars or [d]: f(S) = Σ_{i∈S} max(low_i theta_i,
    high_i theta_i).

    A coordinate without gain stays at 0. low = 0, high = 1 is the recommender: how much of which
    genre.
    """

    low: jax.Array | float  # [] or [d], ≤ 0
    high: jax.Array | float  # [] or [d], ≥ 0

    @arguments(
        low=either(*(real(*d, above=-float("inf"), high=0) for d in ((), ("d",)))),
        high=either(*(real(*d, low=0, below=float("inf")) for d in ((), ("d",)))),
    )
    def __init__(self, low: jax.Array | float = 0.0, high: jax.Array | float = 1.0):
        self.low, self.high = low, high

    @property
    def dimension(self):
        sides = [np.shape(end)[0] for end in (self.low, self.high) if np.ndim(end)]
        return sides[0] if sides else None

    def weights(self, theta):
        gains = jnp.abs(theta * self.argmax(theta))  # without the sign of −0
        return gains, jnp.ones((), theta.dtype)

    def value(self, total, scale):
        return total * scale

    def scores(self, theta):
        return self.weights(theta)[0]

    def score_slope(self, theta):
        return jnp.max(jnp.maximum(-like(self.low, theta), like(self.high, theta)))

    def argmax(self, theta, mask=None):
        theta = masked(theta, mask)
        end = jnp.where(theta > 0, like(self.high, theta), like(self.low, theta))
        return jnp.where(theta == 0, jnp.zeros_like(theta), end)

    def gauge(self, x):
        side = jnp.where(x > 0, like(self.high, x), -like(self.low, x))
        ratio = jnp.where(side > 0, jnp.abs(x) / jnp.where(side > 0, side, 1.0), jnp.inf)
        ratio = jnp.where(x == 0, 0.0, jnp.where(jnp.isnan(x), x, ratio))
        return ratio[jnp.argmax(ratio)]

    def norm_bound(self, sparsity, dimension):
        size = jnp.broadcast_to(
            jnp.maximum(-jnp.asarray(self.low), jnp.asarray(self.high)), (dimension,)
        ).astype(jnp.result_type(float))
        return jnp.sqrt(jnp.sum(lax.top_k(size, min(sparsity, dimension))[0] ** 2))

    def reach(self, dimension, dtype):
        low, high = (
            jnp.broadcast_to(jnp.asarray(end, dtype), (dimension,)) for end in (self.low, self.high)
        )
        return jnp.where(high >= -low, high, low)

    def restrict(self, indices, dimension):
        low, high = (
            jnp.broadcast_to(jnp.asarray(end), (dimension,))[indices]
            for end in (self.low, self.high)
        )
        return Box(low, high)


class OnAxes(WithRadius):
    """A set whose best action is on one axis."""

    greedy_is_exact = True

    def support(self, theta, mask=None):
        return jnp.sum(masked(theta, mask) * self.argmax(theta, mask))


@arguments(radius=RADIUS)
class CrossPolytope(OnAxes):
    """{x : ‖x‖₁ ≤ radius}: f(S) = radius max over S of |theta_i|, attained on one axis.

    f(S) stops growing after its first coordinate, so the greedy gap is 0 for s > 1 and support
    verification never succeeds: use `phased_greedy`.
    """

    def argmax(self, theta, mask=None):
        theta = masked(theta, mask)
        first = jnp.arange(theta.shape[0]) == jnp.argmax(jnp.abs(theta))
        return jnp.where(first, like(self.radius, theta) * jnp.sign(theta), jnp.zeros_like(theta))

    def gauge(self, x):
        return jnp.sum(jnp.abs(x)) / like(self.radius, x)


@arguments(radius=RADIUS)
class Simplex(OnAxes):
    """{x ≥ 0 : Σ x ≤ radius}: f(S) = radius max(0, max over S of theta_i), attained at a
    vertex.
    """

    def argmax(self, theta, mask=None):
        theta = masked(theta, mask)
        best = (jnp.arange(theta.shape[0]) == jnp.argmax(theta)) & (theta > 0)
        return jnp.where(
            best, jnp.broadcast_to(like(self.radius, theta), theta.shape), jnp.zeros_like(theta)
        )

    def gauge(self, x):
        return jnp.where(jnp.any(x < 0), jnp.inf, jnp.sum(x) / like(self.radius, x))
