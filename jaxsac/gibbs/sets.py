"""Single sets of tools: their log-probability, and the most likely one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _checks
from jaxsac.gibbs import _cardinality, _knapsack
from jaxsac.gibbs._arguments import Problem, problem, width

NO_ACTION = -1  # pads sets to a common width, and is ignored wherever it stands


def log_prob(
    a: Any,
    z: Any,
    budget: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    background: tuple[Any, Any] | None = None,
    temperature: Any = 1.0,
) -> jax.Array:
    """Log-probability of sets of tools, log π(a) = Σ_{j ∈ a} z_j / temperature − log Z, in nats.

    The gradient in z is 1_a − `marginals`, over the temperature.

    * `a`: tool indices [..., W], integers; −1 (`NO_ACTION`) is ignored anywhere and order is
      irrelevant. With a background, its tools are numbered after those of z, group by group.
    * `z` and the rest: as in `log_partition`.

    Returns: [...]; −inf for a set that cannot be drawn: duplicate or unknown indices, too many or
    too costly tools, too few with `exactly`, an unavailable tool, no feasible set at all. NaN where
    a score is NaN or +inf.

    Raises: ValueError where `a` is concrete and holds duplicate or unknown indices, too many or too
    costly tools.
    """
    p = problem(z, budget, exactly, costs, background, temperature)
    _checks.require(
        np.ndim(a) >= 1,
        f"a must have shape [..., W], got {list(np.shape(a))}: one row of tool indices per set.",
    )
    a = _checks.integer_array("a", a, (None,) * np.ndim(a))
    if _checks.is_concrete(a, p.costs, p.background):
        _check_sets(np.asarray(a), p)
    return _log_prob(a, p)


def mode(
    z: Any,
    budget: int,
    *,
    exactly: bool = False,
    costs: Any = None,
    background: tuple[Any, Any] | None = None,
) -> jax.Array:
    """The most likely set of tools: the budgeted set of largest total score.

    Ties go to the lowest index, and tools with a score ≤ 0 are not taken unless `exactly` needs
    them. Not differentiable. With `costs`, time and memory M · budget.

    * Arguments as in `log_partition`.

    Returns: int32 [W], highest score first, padded with −1; W is `budget`, with `costs` the size of
    the largest feasible set (M where the costs are traced). All −1 where no set is feasible, and
    where a score is NaN or +inf.
    """
    p = problem(z, budget, exactly, costs, background)
    if p.costs is None:
        return _mode(p)
    return _knapsack_mode(p, width(p))


@jax.jit
def _log_prob(a: jax.Array, p: Problem) -> jax.Array:
    p = p.cold()
    members = a != NO_ACTION
    scores, known = _scores(a, p)
    ordered = jnp.sort(
        jnp.where(members, a, -jnp.arange(1, a.shape[-1] + 1, dtype=jnp.int32)), axis=-1
    )
    valid = jnp.all(known | ~members, axis=-1) & jnp.all(
        ordered[..., 1:] != ordered[..., :-1], axis=-1
    )
    size = jnp.sum(members, axis=-1, dtype=jnp.int32)
    if p.costs is not None:
        value = _knapsack.log_partition(p.z, p.costs, p.budget, p.exactly)
        value = _cardinality.LogPartition(jnp.zeros_like(value), jnp.zeros_like(value), value)
        spent = (
            jnp.where(members & known, p.costs[jnp.clip(a, 0, p.z.shape[0] - 1)], 0)
            if p.z.shape[0]
            else jnp.zeros_like(a)
        )
        size = jnp.sum(jnp.minimum(spent, p.budget + 1), axis=-1, dtype=jnp.int32)
    else:
        value = _cardinality.log_partition(p.z, p.background, p.budget, p.exactly)
    valid &= (size == p.budget) if p.exactly else (size <= p.budget)
    # In differences from the centre, so that a huge offset common to all scores cancels exactly.
    total = jnp.sum(jnp.where(members, scores - value.centre, 0), axis=-1)
    if p.costs is None:
        total = total + value.centre * (size.astype(total.dtype) - value.size)
    result = jnp.where(valid & (value.rest > -jnp.inf), total - value.rest, -jnp.inf)
    return jnp.where(jnp.isnan(value.rest), jnp.nan, result)


def _scores(a: jax.Array, p: Problem) -> tuple[jax.Array, jax.Array]:
    """Scores of the tools in `a` and whether they exist; 0 for those that do not."""
    size = p.z.shape[0]
    own = (a >= 0) & (a < size)
    scores = (
        jnp.where(own, p.z[jnp.clip(a, 0, size - 1)], 0) if size else jnp.zeros(a.shape, p.z.dtype)
    )
    if p.background is None or p.background.scores.shape[0] == 0:
        return scores, own
    ends = size + jnp.cumsum(p.background.counts, dtype=jnp.int32)
    group = jnp.searchsorted(ends, a, side="right")
    behind = (a >= size) & (a < ends[-1])
    return jnp.where(
        behind, p.background.scores[jnp.minimum(group, ends.shape[0] - 1)], scores
    ), own | behind


def _check_sets(a: np.ndarray, p: Problem) -> None:
    total = p.z.shape[0] + (0 if p.background is None else int(np.sum(p.background.counts)))
    bad = (a < NO_ACTION) | (a >= total)
    _checks.require(
        not bad.any(),
        f"a holds the index {a[bad][:1]}, but tools are numbered 0 to {total - 1} (and {NO_ACTION}"
        " pads).",
    )
    ordered = np.sort(a, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    _checks.require(
        not twice.any(),
        f"a names the tool {ordered[..., 1:][twice][:1]} twice in one set: remove duplicates.",
    )
    if p.costs is None:
        most = int(np.max(np.sum(a >= 0, axis=-1), initial=0))
        _checks.require(
            most <= p.budget,
            f"a has a set of {most} tools, more than budget={p.budget}: shorten it or raise the"
            " budget.",
        )
    elif total:
        most = int(
            np.max(
                np.sum(np.where(a >= 0, np.asarray(p.costs, np.int64)[a], 0), axis=-1), initial=0
            )
        )
        _checks.require(
            most <= p.budget,
            f"a has a set of total cost {most}, more than budget={p.budget}: shorten it or raise"
            " the budget.",
        )


@jax.jit
def _mode(p: Problem) -> jax.Array:
    budget = p.budget
    scores, indices = p.z, jnp.arange(p.z.shape[0], dtype=jnp.int32)
    usable = jnp.all(p.z < jnp.inf)
    if p.background is not None:
        own = lax.top_k(p.z, min(budget, p.z.shape[0]))[1].astype(jnp.int32)
        starts = (
            p.z.shape[0] + jnp.cumsum(p.background.counts, dtype=jnp.int32) - p.background.counts
        )
        member = jnp.arange(budget, dtype=jnp.int32)[None, :]
        group = jnp.where(
            member < p.background.counts[:, None], p.background.scores[:, None], -jnp.inf
        )
        scores = jnp.concatenate([p.z[own], group.reshape(-1)])
        indices = jnp.concatenate([own, (starts[:, None] + member).reshape(-1)])
        usable &= jnp.all(p.background.scores < jnp.inf)
    count = min(budget, scores.shape[0])
    best, position = lax.top_k(scores, count)
    taken = best > (-jnp.inf if p.exactly else 0)
    if p.exactly:
        taken &= jnp.sum(taken, dtype=jnp.int32) == budget
    chosen = jnp.where(taken & usable, indices[position], NO_ACTION)
    return jnp.concatenate([chosen, jnp.full((budget - count,), NO_ACTION, jnp.int32)])


@jax.jit(static_argnums=1)
def _knapsack_mode(p: Problem, size: int) -> jax.Array:
    assert p.costs is not None
    chosen = _knapsack.mode(p.z, p.costs, p.budget, p.exactly)
    scores = jnp.where(chosen, p.z, -jnp.inf)
    best, position = lax.top_k(scores, size)
    return jnp.where(best > -jnp.inf, position.astype(jnp.int32), NO_ACTION)
