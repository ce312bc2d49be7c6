"""Log-partition function, marginals, entropy and divergence of budgeted Gibbs policies."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac.gibbs import _cardinality, _knapsack
from jaxsac.gibbs._arguments import Problem, problem


def log_partition(
    z: Any,
    budget: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    background: tuple[Any, Any] | None = None,
    temperature: Any = 1.0,
) -> jax.Array:
    """Log-partition function of the Gibbs policy over budgeted sets of tools.

        log Z = log Σ_a exp(Σ_{j ∈ a} z_j / temperature)

    over all sets a of at most `budget` of the M tools; of exactly `budget` tools with `exactly`; of
    total cost at most (exactly) `budget` with `costs`. The gradient is `marginals`, over the
    temperature; Hessian-vector products are exact too.

    * `z`: scores [M], float32 or float64; −inf marks a tool that is not available. Use `jax.vmap`
      for many rows.
    * `budget`: ≥ 0, the largest number of tools, or the largest total cost; static.
    * `costs`: integer costs [M], ≥ 0. O(M · budget) instead of O(M + budget²).
    * `background`: (scores [C], counts [C]): counts[c] more tools that all score scores[c]; the
      work does not depend on the counts.
    * `temperature`: > 0, divides all scores, the background's too.

    Returns: log Z in nats, []; −inf where no set is feasible (`exactly` with too few available
    tools); NaN where a score is NaN or +inf, a traced cost is negative or a traced temperature is
    not positive. Error: 1e-12 · max(1, |log Z|) in float64 and 1e-6 · max(1, |log Z|) in float32;
    the programme for `costs` adds about M · eps.

    Source: arXiv 2601.08271 (the policy); log Z is e₀ + … + e_B of the weights, elementary
    symmetric polynomials.
    """
    return _log_partition(problem(z, budget, exactly, costs, background, temperature))


def marginals(
    z: Any,
    budget: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    background: tuple[Any, Any] | None = None,
    temperature: Any = 1.0,
) -> Any:
    """Inclusion probabilities P(j ∈ a) of the Gibbs policy over budgeted sets: `temperature` times
    the gradient of `log_partition`.

    * Arguments as in `log_partition`.

    Returns: [M]; with a background the pair (marginals of the tools of z [M], marginal of each tool
    of a background group [C]). All 0 where no set is feasible; NaN where a score is NaN or +inf.
    Error: 1e-10 in float64, 1e-5 in float32.
    """
    return _marginals(problem(z, budget, exactly, costs, background, temperature))


@jax.jit
def _log_partition(p: Problem) -> jax.Array:
    p = p.cold()
    if p.costs is not None:
        return _knapsack.log_partition(p.z, p.costs, p.budget, p.exactly)
    return _cardinality.log_partition(p.z, p.background, p.budget, p.exactly).value


@jax.jit
def _marginals(p: Problem) -> Any:
    p = p.cold()
    if p.costs is not None:
        return _knapsack.log_partition_and_marginals(p.z, p.costs, p.budget, p.exactly)[1]
    derivative = _cardinality.log_partition_and_derivative(p.z, p.background, p.budget, p.exactly)[
        1
    ]
    return (
        derivative.marginals if p.background is None else (derivative.marginals, derivative.groups)
    )


def entropy(
    z: Any,
    budget: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    background: tuple[Any, Any] | None = None,
    temperature: Any = 1.0,
) -> jax.Array:
    """Entropy of the Gibbs policy over budgeted sets, −Σ_a π(a) log π(a), in nats.

    * Arguments as in `log_partition`.

    Returns: []; 0 where no set is feasible (the policy then surely takes no action); NaN where a
    score is NaN or +inf. Error as that of `log_partition`.
    """
    return _entropy(problem(z, budget, exactly, costs, background, temperature))


def kl(
    z: Any,
    other: Any,
    budget: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    temperature: Any = 1.0,
) -> jax.Array:
    """Kullback–Leibler divergence Σ_a p(a) log(p(a) / q(a)) of the Gibbs policies p of `z` and q of
    `other`, in nats.

    * `other`: scores [M] of the second policy; the rest as in `log_partition`.

    Returns: []; +inf where `other` lacks a tool that `z` uses, or all feasible sets; 0 where
    neither has a feasible set; NaN where a score is NaN or +inf.
    """
    first = problem(z, budget, exactly, costs, None, temperature)
    other = _checks.real_array("other", other, first.z.shape, first.z.dtype)
    return _kl(first, problem(other, budget, exactly, costs, None, temperature))


@jax.jit
def _entropy(p: Problem) -> jax.Array:
    p = p.cold()
    value, derivative = _solve(p)
    return jnp.where(value.rest == -jnp.inf, 0, _cross_entropy(p, value, derivative, p, value))


@jax.jit
def _kl(p: Problem, q: Problem) -> jax.Array:
    p, q = p.cold(), q.cold()
    p_value, derivative = _solve(p)
    q_value, _ = _solve(q)
    result = _cross_entropy(p, p_value, derivative, q, q_value) - _cross_entropy(
        p, p_value, derivative, p, p_value
    )
    p_empty, q_empty = p_value.rest == -jnp.inf, q_value.rest == -jnp.inf
    result = jnp.where(
        p_empty | q_empty, jnp.where(p_empty & q_empty, 0, jnp.inf), jnp.maximum(result, 0)
    )
    return jnp.where(jnp.isnan(p_value.rest) | jnp.isnan(q_value.rest), jnp.nan, result)


def _solve(p: Problem) -> tuple[_cardinality.LogPartition, _cardinality.Derivative]:
    if p.costs is None:
        return _cardinality.log_partition_and_derivative(p.z, p.background, p.budget, p.exactly)
    value, own = _knapsack.log_partition_and_marginals(p.z, p.costs, p.budget, p.exactly)
    zero = jnp.zeros_like(value)
    return _cardinality.LogPartition(zero, zero, value), _cardinality.Derivative(own, None, zero)


def _cross_entropy(p: Problem, p_value, derivative, q: Problem, q_value) -> jax.Array:
    """−Σ_a p(a) log q(a), from the sizes' difference and centred scores: a huge common offset
    cancels before it is rounded.
    """
    own = derivative.marginals
    used = jnp.sum(jnp.where(own > 0, own * (jnp.where(own > 0, q.z, 0) - q_value.centre), 0))
    if q.background is not None:
        taken = derivative.groups * q.background.counts.astype(own.dtype)
        used = used + jnp.sum(
            jnp.where(
                taken > 0,
                taken * (jnp.where(taken > 0, q.background.scores, 0) - q_value.centre),
                0,
            )
        )
    if p.costs is None:
        used = used + q_value.centre * ((p_value.size - q_value.size) + derivative.excess)
    return q_value.rest - used
