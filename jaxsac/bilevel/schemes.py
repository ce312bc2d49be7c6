"""The differences: how the lower-level copies move, and which hypergradient they give.

Every scheme keeps a point z near the lower minimiser and a direction d with the copies of y at
z + σ d and the like. Tracking d, and not the copies, keeps its digits when sigma is small; one
batch and one step size for all copies make their common error cancel in d.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._linear import LinearSolution, conjugate_gradient
from jaxsac.bilevel.problem import Oracle, Tree, add, dtype_of, norm, scale, subtract, zeros


class Scheme(NamedTuple):
    """`start(y)` is the first d; `field` gives the descent directions of (z, d), zero at the
    copies' minimisers.

    `linear`: d solves a problem with the upper level linearised at z, whose gradient c there is
    passed to `field`. `on_copies(each, z, d, sigma)`: apply a map to every copy, and read (z, d)
    off again. `moves_z`: z is the copies' midpoint, and not the lower minimiser. `bias`: this share
    of what doubling σ changes is that of σ itself; 0: not known.
    """

    start: Callable[[Tree], Tree]
    field: Callable[[Oracle, Tree, Tree, Tree, jax.Array, Tree], tuple[Tree, Tree]]
    hypergradient: Callable[[Oracle, Tree, Tree, Tree, jax.Array], Tree]
    on_copies: Callable[[Callable[[Tree], Tree], Tree, Tree, jax.Array], tuple[Tree, Tree]]
    first: Callable[[Tree], Tree] = lambda d: d  # the direction of the nearest copy
    linear: bool = False
    moves_z: bool = False
    bias: float = 0.0


# forward: h = f_x(x, y) + [g_x(x, y) − g_x(x, z)] / σ, where y = z + σ d minimises g + σ f and z
# minimises g


def _forward_field(oracle, x, z, d, sigma, c):
    step = scale(d, sigma)
    u_z, (change,) = oracle.lower_changes(1, x, z, step)
    return u_z, add(oracle.upper_y(x, add(z, step)), change, 1 / sigma)


def _forward_hypergradient(oracle, x, z, d, sigma):
    step = scale(d, sigma)
    return add(oracle.upper_x(x, add(z, step)), oracle.difference_x(x, z, step), 1 / sigma)


def _map_forward(each, z, d, sigma):
    mapped = each(z)
    return mapped, scale(subtract(each(add(z, d, sigma)), mapped), 1 / sigma)


# central: the same with σ and −σ; z = (y₊ + y₋) / 2


def _central_field(oracle, x, z, d, sigma, c):
    plus, minus = add(z, d, sigma), add(z, d, -sigma)
    upper_plus, upper_minus = oracle.upper_y(x, plus), oracle.upper_y(x, minus)
    lower_minus, (change,) = oracle.lower_changes(1, x, minus, scale(d, 2 * sigma))
    u_z = add(add(lower_minus, change, 0.5), subtract(upper_plus, upper_minus), 0.5 * sigma)
    u_d = add(scale(add(upper_plus, upper_minus), 0.5), change, 0.5 / sigma)
    return u_z, u_d


def _central_hypergradient(oracle, x, z, d, sigma):
    plus, minus = add(z, d, sigma), add(z, d, -sigma)
    upper = scale(add(oracle.upper_x(x, plus), oracle.upper_x(x, minus)), 0.5)
    return add(upper, oracle.difference_x(x, minus, scale(d, 2 * sigma)), 0.5 / sigma)


def _map_central(each, z, d, sigma):
    plus, minus = each(add(z, d, sigma)), each(add(z, d, -sigma))
    return scale(add(plus, minus), 0.5), scale(subtract(plus, minus), 0.5 / sigma)


# central_linear: z minimises g; d solves [g_y(x, z + σ d) − g_y(x, z − σ d)] / (2 σ) + c = 0 with
# c = f_y(x, z) fixed, so that only the lower level's curvature matters: no bound on σ, and an error
# O(σ²)


def _linear_field(oracle, x, z, d, sigma, c):
    return oracle.lower_y(x, z), add(c, cross_term(oracle, x, z, d, sigma, of_y=True))


def cross_term(
    oracle: Oracle, x: Tree, z: Tree, d: Tree, sigma: jax.Array, *, of_y: bool = False
) -> Tree:
    """[g_x(x, z + σ d) − g_x(x, z − σ d)] / (2 σ): the pull-back of c through y*(x) when d solves
    the linear scheme.

    `of_y`: the same of g_y, which is −c there.
    """
    difference = oracle.difference_y if of_y else oracle.difference_x
    return scale(difference(x, add(z, d, -sigma), scale(d, 2 * sigma)), 0.5 / sigma)


def _linear_hypergradient(oracle, x, z, d, sigma):
    return add(oracle.upper_x(x, z), cross_term(oracle, x, z, d, sigma))


def _fourth_order(oracle, x, z, d, sigma, of_y):
    """[8 (g(σ) − g(−σ)) − (g(2 σ) − g(−2 σ))] / (12 σ), of g_x or g_y."""
    steps = (scale(d, factor * sigma) for factor in (1.0, 3.0, 4.0))
    _, (near, far, whole) = oracle.lower_changes(int(of_y), x, add(z, d, -2 * sigma), *steps)
    return scale(subtract(scale(subtract(far, near), 8.0), whole), 1 / (12 * sigma))


def _extrapolated_field(oracle, x, z, d, sigma, c):
    return oracle.lower_y(x, z), add(c, _fourth_order(oracle, x, z, d, sigma, True))


def _extrapolated_hypergradient(oracle, x, z, d, sigma):
    return add(oracle.upper_x(x, z), _fourth_order(oracle, x, z, d, sigma, False))


def _map_linear(each, z, d, sigma):
    plus, minus = each(add(z, d, sigma)), each(add(z, d, -sigma))
    return each(z), scale(subtract(plus, minus), 0.5 / sigma)


# one_sided: three copies at 0, σ, 2 σ; second order without a negative σ


def _one_sided_copies(d: Tree, sigma: jax.Array) -> tuple[tuple[Tree, jax.Array], ...]:
    """The steps σ d₁ and 2 σ d₂ of the perturbed copies, and their penalties; d's leaves hold both
    on a leading axis.
    """
    return tuple(
        (scale(jax.tree.map(lambda leaf, k=k: leaf[k], d), (k + 1) * sigma), (k + 1) * sigma)
        for k in range(2)
    )


def _stack(first: Tree, second: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)


def _nearest(d: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf[0], d)


def _one_sided_field(oracle, x, z, d, sigma, c):
    copies = _one_sided_copies(d, sigma)
    u_z, changes = oracle.lower_changes(1, x, z, *(step for step, _ in copies))
    directions = (
        add(oracle.upper_y(x, add(z, step)), change, 1 / penalty)
        for (step, penalty), change in zip(copies, changes, strict=True)
    )
    return u_z, _stack(*directions)


def _one_sided_hypergradient(oracle, x, z, d, sigma):
    (near, _), (far, _) = _one_sided_copies(d, sigma)
    upper = subtract(scale(oracle.upper_x(x, add(z, near)), 2.0), oracle.upper_x(x, add(z, far)))
    _, (to_near, to_far) = oracle.lower_changes(0, x, z, near, far)
    return add(upper, subtract(scale(to_near, 4.0), to_far), 0.5 / sigma)


def _map_one_sided(each, z, d, sigma):
    mapped = each(z)
    copies = (
        scale(subtract(each(add(z, step)), mapped), 1 / penalty)
        for step, penalty in _one_sided_copies(d, sigma)
    )
    return mapped, _stack(*copies)


def _two_zeros(y: Tree) -> Tree:
    return _stack(zeros(y), zeros(y))


SCHEMES = {
    "forward": Scheme(zeros, _forward_field, _forward_hypergradient, _map_forward),
    "central": Scheme(zeros, _central_field, _central_hypergradient, _map_central, moves_z=True),
    "central_linear": Scheme(zeros, _linear_field, _linear_hypergradient, _map_linear, linear=True),
    "one_sided": Scheme(
        _two_zeros, _one_sided_field, _one_sided_hypergradient, _map_one_sided, _nearest
    ),
}
DIFFERENCES = tuple(SCHEMES)


def scheme_at(difference: str, oracle: Oracle, *, relative: bool) -> Scheme:
    """The scheme of a difference; for a σ that nobody gave that of central_linear extrapolated to
    fourth order, where differences have rounding at all.
    """
    scheme = SCHEMES[difference]
    if not (relative and scheme.linear) or oracle.subtracts_nothing:
        return scheme
    return scheme._replace(
        field=_extrapolated_field, hypergradient=_extrapolated_hypergradient, bias=1 / 15
    )


def balanced_factor(scheme: Scheme, dtype: Any) -> float:
    """The relative size of σ d at which rounding and bias balance: √eps for differences of first
    order, else ∛eps.
    """
    return float(jnp.finfo(dtype).eps) ** (1 / 2 if scheme.field is _forward_field else 1 / 3)


def relative_sigma(factor: Any, whole: jax.Array, d: Tree) -> jax.Array:
    """The σ for which ‖σ d‖ = factor · whole; `factor` itself while d = 0."""
    size = norm(d)
    ratio = jnp.where(size > 0, whole / jnp.where(size > 0, size, 1.0), 1.0)
    return (factor * ratio).astype(size.dtype)


def hessian_product(oracle: Oracle, x: Tree, z: Tree, v: Tree, share: float | None = None) -> Tree:
    """D²_yy lower(x, z) v from two gradients, `share` of z's size to each side of z: by default
    where rounding and bias balance.
    """
    share = float(jnp.finfo(dtype_of(z)).eps) ** (1 / 3) if share is None else share
    step = relative_sigma(share, oracle.size(z), v)
    return scale(oracle.difference_y(x, add(z, v, -step), scale(v, 2 * step)), 0.5 / step)


FLAT = 16  # times what rounding hides may be rounding


def solve_hessian(
    oracle: Oracle, x: Tree, z: Tree, right_side: Tree, share: float | None = None, **options: Any
) -> LinearSolution:
    """Conjugate gradients on such products, to where curvature cannot be told from rounding."""
    eps = float(jnp.finfo(dtype_of(z)).eps)
    return conjugate_gradient(
        lambda v: hessian_product(oracle, x, z, v, share),
        right_side,
        flat=FLAT * (eps ** (2 / 3) if share is None else eps / share),
        precondition=lambda v: oracle.steer(x, z, v),
        **options,
    )


def positive(sigma: Any, dtype: Any) -> jax.Array:
    """σ as a scalar of `dtype`, NaN where it is not positive."""
    return jnp.where(sigma > 0, sigma, jnp.nan).astype(dtype)


def default_sigma(dtype: Any) -> float:
    return 1e-4 if jnp.finfo(dtype).bits == 64 else 5e-3
