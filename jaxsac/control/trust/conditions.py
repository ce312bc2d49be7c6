"""When a sparse fit can be trusted: irrepresentability, restricted curvature and the least signal
that shows, as numbers of a block Hessian; and the primal-dual witness at a support that is known,
as it is in a simulation.

The functions of a Hessian take H [n, q, n, q], that of the smooth loss between the blocks of n
tools with q features each (symmetric, positive semi-definite), and a support, booleans [n]. All are
pure, jitted, and can be vmapped over problems.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops, designs, group_lasso
from jaxsac._arguments import anything, arguments, flag, real, record, size
from jaxsac.prox import group_norms
from jaxsac.solution import register

_HESSIAN, _WEIGHTS = real("n", "q", "n", "q"), real("n", above=0)
_SUPPORT = anything("booleans [n]")
_RESTART_SEED = 0  # part of the definition, so that equal problems give equal bounds


@register
class Irrepresentability(NamedTuple):
    """Both are below 1 where the condition holds (α = 1 minus the number)."""

    signed: jax.Array  # []: nearly necessary
    norm: jax.Array  # []: sufficient whatever the signs


@register
class Curvature(NamedTuple):
    """Bounds on the restricted strong convexity constant μ: lower ≤ μ ≤ upper ≤ upper_support."""

    lower: jax.Array  # []: proved, by coherence or the least eigenvalue of H
    upper: jax.Array  # []: the quotient at the best feasible direction that a descent found
    upper_support: jax.Array  # []: least eigenvalue on the support, all of it in the cone


@arguments(hessian=_HESSIAN, support=_SUPPORT, coef=real("n", "q"), weights=_WEIGHTS)
def irrepresentability(
    hessian: Any, support: Any, coef: Any, weights: Any = None
) -> Irrepresentability:
    """How much the tools outside the support S look like those inside, through the curvature of the
    loss.

        signed = max_{j ∉ S} ‖H_jS H_SS⁻¹ z‖₂ / w_j,    z_g = w_g θ_g / ‖θ_g‖₂
        norm   = max_{j ∉ S} Σ_{g ∈ S} w_g ‖(H_jS H_SS⁻¹)_g‖_op / w_j  (≥ signed)

    * `hessian` [n, q, n, q]; `support` bool [n].
    * `coef` θ [n, q]: only their directions on S count. `weights` w > 0 [n], None is 1.

    Returns: an `Irrepresentability`; 0 where nothing is outside S or inside it, infinite or NaN
    where H_SS is singular.

    Source: A4 of arXiv 2601.08271; Bach 2008.
    """
    support, weights = _support_and_weights(hessian, support, weights)
    return _irrepresentability(hessian, support, coef, weights)


@arguments(
    hessian=_HESSIAN,
    support=_SUPPORT,
    cone=real(low=0),
    whole=flag(),
    num_restarts=size(1),
    num_steps=size(),
)
def restricted_curvature(
    hessian: Any,
    support: Any,
    *,
    cone: Any = 3.0,
    whole: bool = True,
    num_restarts: int = 8,
    num_steps: int = 200,
) -> Curvature:
    """Bounds on μ = min v'Hv / ‖v‖² over the cone Σ_{j ∉ S} ‖v_j‖ ≤ c Σ_{j ∈ S} ‖v_j‖, v ≠ 0.

        lower         = max(0, λ_min(H), min_g λ_min(H_gg) − (1 + c)² |S| max_{g ≠ h} ‖H_gh‖_op)
        upper         = the quotient at the best of some projected descents: a feasible v
        upper_support = λ_min(H_SS): v supported in S

    * `hessian` [n, q, n, q]; `support` bool [n], not empty; `cone` c ≥ 0.
    * `whole`: False says that the n tools stand for more of their kind (at least two of each kind
      that has more than one), so that λ_min(H) is no bound and the other is taken alone.
    * `num_restarts` ≥ 1 descents of `num_steps` ≥ 0 steps.

    The lower bound holds since the sum over pairs of blocks is at most max ‖H_gh‖ (Σ ‖v_g‖)² ≤ max
    ‖H_gh‖ (1 + c)² |S| ‖v‖².

    Returns: a `Curvature`; NaN where the support is empty.

    Source: A3 of arXiv 2601.08271; the bounds are classical (Bickel, Ritov & Tsybakov 2009 for the
    cone).
    """
    support = _support_and_weights(hessian, support)[0]
    return _restricted_curvature(hessian, support, cone, whole, num_restarts, num_steps)


@arguments(hessian=_HESSIAN, support=_SUPPORT, lam=real(low=0), weights=_WEIGHTS)
def signal_threshold(hessian: Any, support: Any, lam: Any, weights: Any = None) -> jax.Array:
    """The largest error that the penalty can cause in a tool's coefficients, lam max_{g ∈ S}
    Σ_{l ∈ S} w_l ‖(H_SS⁻¹)_gl‖_op, [].

    * `hessian` [n, q, n, q]; `support` bool [n]; `lam` ≥ 0; `weights` w > 0 [n], None is 1.

    A quadratic loss with minimiser θ* on the support and the witness' solution θ satisfy max_g
    ‖θ_g − θ*_g‖ ≤ this × (1 + noise / lam), noise = the largest gradient norm at θ*: a tool whose
    ‖θ*_g‖ is larger is kept (beta-min).

    Source: A5 of arXiv 2601.08271; Wainwright 2009, in the block-wise maximum norm.
    """
    support, weights = _support_and_weights(hessian, support, weights)
    return _signal_threshold(hessian, support, lam, weights)


def _support_and_weights(hessian: jax.Array, support: Any, weights: Any = None):
    n = hessian.shape[0]
    support = _checks.boolean_array("support", support, (n,))
    return support, jnp.ones(n, hessian.dtype) if weights is None else weights


def _inside(hessian: jax.Array, support: jax.Array, outside: jax.Array | float) -> jax.Array:
    """H on the support and `outside` times the identity elsewhere, as a matrix [nq, nq]."""
    n, q = hessian.shape[:2]
    mask = jnp.repeat(support, q)
    matrix = hessian.reshape(n * q, n * q)
    return jnp.where(
        mask[:, None] & mask[None, :], matrix, outside * jnp.eye(n * q, dtype=matrix.dtype)
    )


def _operator_norms(blocks: jax.Array) -> jax.Array:
    """Largest singular values of [..., q, q]."""
    if blocks.shape[-1] == 1:
        return jnp.abs(blocks[..., 0, 0])
    gram = jnp.matmul(jnp.swapaxes(blocks, -1, -2), blocks, precision="highest")
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[..., -1], 0))


@jax.jit
def _irrepresentability(hessian, support, coef, weights) -> Irrepresentability:
    n, q = hessian.shape[:2]
    squares = jnp.sum(coef**2, axis=1)
    live = support & (squares != 0)  # NaN too
    direction = jnp.where(
        live[:, None], weights[:, None] * coef / jnp.sqrt(jnp.where(live, squares, 1))[:, None], 0
    )
    mask = jnp.repeat(support, q)
    cross = jnp.where(~mask[:, None] & mask[None, :], hessian.reshape(n * q, n * q), 0)
    found = jnp.linalg.solve(_inside(hessian, support, 1.0), cross.T).T  # H_jS H_SS^-1
    image = jnp.matmul(found, direction.reshape(-1), precision="highest").reshape(n, q)
    signed = jnp.sqrt(jnp.sum(image**2, axis=1)) / weights
    norms = _operator_norms(jnp.swapaxes(found.reshape(n, q, n, q), 1, 2))
    norm = jnp.sum(norms * jnp.where(support, weights, 0)[None, :], axis=1) / weights
    outside = ~support
    return Irrepresentability(
        jnp.max(jnp.where(outside, signed, 0)), jnp.max(jnp.where(outside, norm, 0))
    )


@jax.jit
def _signal_threshold(hessian, support, lam, weights):
    n, q = hessian.shape[:2]
    inverse = jnp.linalg.inv(_inside(hessian, support, 1.0)).reshape(n, q, n, q)
    norms = _operator_norms(jnp.swapaxes(inverse, 1, 2))
    row = jnp.sum(norms * jnp.where(support, weights, 0)[None, :], axis=1)
    return lam * jnp.max(jnp.where(support, row, 0))


@functools.partial(jax.jit, static_argnames=("whole", "num_restarts", "num_steps"))
def _restricted_curvature(
    hessian, support, cone, whole: bool, num_restarts: int, num_steps: int
) -> Curvature:
    n, q = hessian.shape[:2]
    dtype = hessian.dtype
    matrix = hessian.reshape(n * q, n * q)
    diagonal = hessian[jnp.arange(n), :, jnp.arange(n), :]
    pairs = jnp.where(jnp.eye(n, dtype=bool), 0, _operator_norms(jnp.swapaxes(hessian, 1, 2)))
    size = jnp.sum(support).astype(dtype)
    coherence = jnp.min(jnp.linalg.eigvalsh(diagonal)) - (1 + cone) ** 2 * size * jnp.max(pairs)
    values, vectors = jnp.linalg.eigh(matrix)
    # Rounding of an eigenvalue is of the order of eps times the largest: taken off, the bound stays
    # one.
    slack = 4 * n * q * jnp.finfo(dtype).eps * jnp.max(jnp.abs(values))
    lower = jnp.maximum((jnp.maximum(coherence, values[0]) if whole else coherence) - slack, 0)
    top = jnp.maximum(values[-1], jnp.finfo(dtype).tiny)
    inner_values, inner_vectors = jnp.linalg.eigh(_inside(hessian, support, 2 * top))

    def feasible(v):
        """The nearest point of the cone on the ray that shrinks what is outside the support."""
        norms = jnp.sqrt(jnp.sum(v.reshape(n, q) ** 2, axis=1))
        inside = jnp.sum(jnp.where(support, norms, 0))
        outside = jnp.sum(jnp.where(support, 0, norms))
        safe = jnp.where(outside > 0, outside, 1)
        shrink = jnp.where(outside > cone * inside, cone * inside / safe, 1)
        v = jnp.where(jnp.repeat(support, q), v, shrink * v)
        length = jnp.sqrt(jnp.sum(v**2))
        return jnp.where(length > 0, v / jnp.where(length > 0, length, 1), inner_vectors[:, 0])

    def quotient(v):
        return jnp.vdot(v, jnp.matmul(matrix, v, precision="highest")) / jnp.vdot(v, v)

    def step(carry, _):
        v, best = carry
        product = jnp.matmul(matrix, v, precision="highest")
        v = feasible(v - (product - jnp.vdot(v, product) * v) / top)
        return (v, jnp.minimum(best, quotient(v))), None

    def descend(start):
        start = feasible(start)
        return _loops.scan(step, (start, quotient(start)), None, num_steps)[0][1]

    random = jax.random.normal(jax.random.key(_RESTART_SEED), (num_restarts, n * q), dtype)
    starts = jnp.concatenate([random, vectors[:, :1].T, inner_vectors[:, :1].T])
    upper = jnp.min(jax.vmap(descend)(starts))
    known = jnp.any(support)
    nan = jnp.asarray(jnp.nan, dtype)
    return Curvature(
        lower=jnp.where(known, lower, nan),
        upper=jnp.where(known, jnp.minimum(upper, inner_values[0]), nan),
        upper_support=jnp.where(known, inner_values[0], nan),
    )


@register
class Witness(NamedTuple):
    """The restricted solution and its dual feasibility."""

    margin: jax.Array  # []
    coef: jax.Array  # [p]
    intercept: jax.Array  # []
    status: jax.Array  # int32 []: of the restricted solve


@arguments(
    problem=record(group_lasso.Problem),
    support=anything("booleans [G]"),
    lam=real(low=0),
    tol=real(low=0),
)
def oracle_witness(
    problem: group_lasso.Problem, support: Any, lam: Any, *, tol: Any = None
) -> Witness:
    """Solve the group lasso on the groups of `support` alone and see whether the others would stay
    out.

        margin = 1 − max_{g ∉ S} ‖X_g' ρ‖₂ / (lam w_g),    ρ = −∇F at the minimiser of
                                                          F + lam Σ_{g ∈ S} w_g ‖b_g‖

    * `problem`: a `group_lasso.Problem` of one output with a matrix X. `support` bool [G]. lam > 0,
      `tol`: as in `group_lasso.solve`.

    A margin > 0 implies that every solution on all groups is supported in S. With S the truth, that
    is: no irrelevant tool is kept. At a *fitted* support the margin is positive by construction (it
    is then a check that the fit is unique, and says nothing about the truth: it is positive on pure
    noise). Pure, to be jitted and vmapped over problems.

    Returns: a `Witness`; its margin is 1 where S holds every group, −∞ or NaN for lam = 0.

    Raises: ValueError for a support that is not bool [G], and a design that is no matrix.

    Source: the primal-dual witness of arXiv 2601.08271, theorem 4.6; Wainwright 2009.
    """
    groups = problem.groups
    support = _checks.boolean_array("support", support, (groups.num_groups,))
    _checks.require(isinstance(problem.X, designs.Dense), "problem.X must be a matrix.")
    mask, X = groups.spread(support), problem.X.matrix
    inside = dataclasses.replace(problem, X=jnp.where(mask[None, :], X, 0))
    found = group_lasso.solve(inside, lam=lam, tol=tol)
    coef, intercept = jnp.where(mask, found.value.coef, 0), found.value.intercept
    z = problem.offset + jnp.matmul(X, coef, precision="highest") + intercept
    rho = problem.loss.negative_gradient(z, problem.y, problem.sample_weight)
    pull = group_norms(jnp.matmul(rho, X, precision="highest"), groups) / problem.weights
    margin = 1 - jnp.max(jnp.where(support, 0, pull)) / lam
    return Witness(margin, coef, intercept, found.status)
