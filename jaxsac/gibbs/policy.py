"""The exact law of budgeted sets as an object: expanded once, then asked."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._arguments import anything, arguments, flag, integer, real, size
from jaxsac._implicit import implicit
from jaxsac.gibbs import _knapsack, _law, _sets
from jaxsac.gibbs._knapsack import Tables
from jaxsac.gibbs._law import Expansion, Means
from jaxsac.gibbs._problem import Problem, problem
from jaxsac.solution import Hashable, register

_SHIFTS = 60  # rounds of with_mean_size


@register
class Policy(Hashable):
    """The Gibbs policy over budgeted sets of M tools, a pytree that is expanded once.

        π(a) = exp(Σ_{j ∈ a} z_j / temperature) / Z   over the sets a ⊇ given with at_least ≤ |a| ≤
                                                      budget, or total cost in place of |a|

    All methods are unbatched and go through `jax.jit`, `jax.vmap` and `jax.grad`; so does the
    constructor.

    * `z`: scores [M], float32 or float64 (bfloat16 and float16 are computed in float32); −inf marks
      a tool that cannot be.
    * `budget`: ≥ 0, the largest number of tools, or the largest total cost; static, but for a
      static `max_budget`, beside which it may be traced (rows of different budgets under `vmap`).
    * `exactly`: |a| = budget (total cost = budget); static.
    * `costs`: integer costs [M], ≥ 0: work M · budget instead of O(M + budget²).
    * `background`: (scores [C], counts [C]): counts[c] more tools that all score scores[c],
      numbered after those of z, group by group; the work does not depend on the counts.
    * `temperature`: > 0, divides all scores, after they were centred.
    * `given`: int32 [G] tools of z that are already held, −1 pads: they count against the budget,
      and every set has them.
    * `at_least`: ≥ 0, the least number of tools, or the least total cost.

    Where something traced is out of its range, or a score is NaN or +inf, answers are NaN, sets all
    −1. Raises: ValueError for the same where it is concrete. Error: of log Z 1e-12 · max(1, |log
    Z|) in float64, 1e-6 in float32 (`costs` adds M · eps); of marginals 1e-10 and 1e-5.

    Example: `Policy(jnp.asarray([0.3, -1.0, 2.0]), budget=2).marginals()`.

    Source: arXiv 2601.08271 (the policy). log Z is of elementary symmetric polynomials; their
    recurrence is that of Chen, Dempster and Liu (Biometrika 81, 1994) for conditional Bernoulli
    laws.
    """

    problem: Problem  # what was asked, checked
    expansion: Expansion | None  # a cache, without derivatives; None where the budget never binds

    @arguments(
        z=real("M"),
        budget=anything("int ≥ 0, static; with max_budget it may be traced", like=size()),
        exactly=flag(),
        max_budget=size(),
        costs=anything("int32 [M], ≥ 0"),
        background=anything("(scores: real [C], counts: int32 [C], ≥ 0)"),
        temperature=real(above=0),
        given=anything("int32 [G], ≥ -1", like=integer("G", low=-1, below="M")),
        at_least=integer(low=0),
    )
    def __init__(
        self,
        z: Any,
        *,
        budget: Any,
        exactly: bool = False,
        max_budget: int | None = None,
        costs: Any = None,
        background: tuple[Any, Any] | None = None,
        temperature: Any = 1.0,
        given: Any = None,
        at_least: Any = 0,
    ):
        self.problem = problem(
            z,
            budget,
            exactly=exactly,
            max_budget=max_budget,
            costs=costs,
            background=background,
            temperature=temperature,
            given=given,
            at_least=at_least,
        )
        self.expansion = _expand(self.problem)

    @jax.jit
    def log_partition(self) -> jax.Array:
        """log Z = log Σ_a exp(Σ_{j ∈ a} z_j / temperature), []; −inf where no set is feasible."""
        p = self.problem
        value = _law.log_partition(p, self.expansion)
        held = jnp.sum(jnp.where(p.held, p.scores, 0)) / p.temperature
        return value.size * value.centre + value.rest + held

    @jax.jit
    def marginals(self) -> Any:
        """P(j ∈ a), [M]: `temperature` times the gradient of log Z; 0 where no set is feasible.
        With a background the pair with those of one tool of each group, [C].
        """
        p, mean = self.problem, self._means()
        if p.background is None:
            return mean.chosen
        counts = p.background.counts.astype(mean.chosen.dtype)
        some = counts > 0
        number = mean.groups + mean.likeliest
        groups = jnp.where(some, number / jnp.where(some, counts, 1), 0)
        return mean.chosen, jnp.where(self._feasible(), groups, 0)

    def log_prob(self, sets: Any) -> jax.Array:
        """log π(a), [...], of sets int32 [..., any]; −1 is ignored anywhere, order is irrelevant.

        −inf for a set that cannot be drawn: duplicate or unknown indices, too many or too costly
        tools, too few, an unavailable tool, a given tool missing, no feasible set at all.

        Raises: ValueError where `sets` is concrete and holds duplicate or unknown indices, or more
        than the budget.
        """
        return _log_prob(self, _sets.checked(sets, self.problem))

    @jax.jit
    def entropy(self) -> jax.Array:
        """−Σ_a π(a) log π(a) in nats, []; 0 where no set is feasible."""
        mean = _law.means(self.problem, self.expansion)
        found = _law.cross_entropy(mean.excess, mean, self.problem, self.expansion)
        found = jnp.where(self._feasible(), _not_negative(found), 0)
        return jnp.where(self.problem.usable, found, jnp.nan)

    def kl(self, other: "Policy") -> jax.Array:
        """Σ_a π(a) log(π(a) / other(a)) in nats, [], of any other policy on the same items: +inf
        where `other` lacks a set that this policy has, 0 where neither has any.

        Raises: ValueError where the policies have different numbers of tools, or costs.
        """
        _sets.require_same_items(self.problem, other.problem)
        return _kl(self, other)

    def sample(self, key: jax.Array, num_samples: int) -> jax.Array:
        """Independent exact draws, int32 [num_samples, W] padded with −1 (`NO_ACTION`).

        The key is consumed; order within a row means nothing. W is the (largest) budget; with
        `costs` the size of the largest set that they allow, M where the costs are traced. All −1
        where no set is feasible. O(M B) work once (M log B memory), O(B² log M) a set; with `costs`
        O(M · budget + M · num_samples · W). Not differentiable: see `straight_through`, `expected`.
        """
        count = size().take("num_samples", num_samples)
        return _sets.sample(key, self.problem, self.expansion, count)

    def mode(self) -> jax.Array:
        """The most likely set: int32 [W], highest score first, padded with −1; W as in `sample`.

        Ties go to the lowest index, and tools with a score ≤ 0 are taken only where they must be.
        Not differentiable. All −1 where no set is feasible.
        """
        return _sets.mode(self.problem)

    def modes(self, count: int) -> tuple[jax.Array, jax.Array]:
        """The `count` most likely sets, exactly, best first: (sets int32 [count, W] padded with −1,
        their log-probabilities [count]). Rows beyond the last set: −1 and −inf.

        O((B + count) B count) beside one pass over the scores; with `costs` O(M · budget · count).
        """
        count = size(1).take("count", count)
        sets, found = _sets.best(self.problem, self.expansion, count)
        return sets, jnp.where(found, self.log_prob(lax.stop_gradient(sets)), -jnp.inf)

    def covariance(self, u: Any) -> jax.Array:
        """Cov(1_a) u, [M], of u [M]: the Hessian of log Z by the scores over the temperature, and
        the Fisher matrix, times u. O(M B).
        """
        p = self.problem
        u = real(*p.z.shape).take("u", u, p.z.dtype)
        return _covariance(self, u)

    def pair_marginals(self, items: Any) -> jax.Array:
        """P(i ∈ a and j ∈ a), [n, M], for the tools `items` int32 [n] of z and all j: the marginal
        of i times those given it. n times the work of `marginals`.
        """
        p = self.problem
        items = integer("n", low=0, below="M").take("items", items, M=p.z.shape[0])
        mean = self._means().chosen

        def row(item):
            given = item[None] if p.given is None else jnp.append(p.given, item)
            held = eqx.tree_at(lambda p: p.given, p, given, is_leaf=lambda x: x is None)
            held = eqx.tree_at(lambda p: p.z, held, jnp.where(held.held, -jnp.inf, p.scores))
            held = _bound(held)
            found = _complete(held, _law._means(held, _law.expand(held))).chosen
            return jnp.where(mean[item] > 0, mean[item] * found, 0)

        return jax.vmap(row)(items)

    @jax.jit
    def size_law(self) -> jax.Array:
        """P(|a| = r) for r = 0, …, B, [B + 1] (B: the largest budget, W with `costs`): of the
        number of tools, the given ones included. All 0 where no set is feasible.
        """
        p = self.problem
        e = _law.expand(_bound(p)) if p.free else self.expansion
        p = _bound(p)
        law = _law.means(p, e).law
        if isinstance(e, Expansion) and isinstance(e.own, Tables):
            law = _knapsack.number_law(p, e.own, law)
        held = jnp.sum(p.held, dtype=jnp.int32)
        moved = jnp.arange(law.shape[0], dtype=jnp.int32) - held
        return jnp.where(moved >= 0, law[jnp.maximum(moved, 0)], 0)

    @jax.jit
    def mean_size(self) -> jax.Array:
        """The expected number of tools, []."""
        mean = self._means()
        number = jnp.sum(mean.groups + mean.likeliest)
        return jnp.sum(mean.chosen) + jnp.where(self._feasible(), number, 0)

    def with_mean_size(self, target: Any) -> "Policy":
        """The policy whose scores are all moved by one number such that its mean size is `target`
        ([], strictly between the least and the largest size): differentiable in everything.

        NaN where no such number exists, as where the size is exact.
        """
        p = self.problem
        target = real(above=0).take("target", target, p.z.dtype)

        def excess(shift, inputs):
            policy, target = inputs
            return policy._shifted(shift).mean_size() - target

        def step(carry):
            shift, low, high, reach = carry
            short = excess(shift, (self, target)) < 0
            low, high = jnp.where(short, shift, low), jnp.where(short, high, shift)
            further = shift + jnp.where(short, reach, -reach)
            between = jnp.isfinite(low) & jnp.isfinite(high)
            return jnp.where(between, (low + high) / 2, further), low, high, 2 * reach

        zero = jnp.zeros((), p.z.dtype)
        start = (zero, zero - jnp.inf, zero + jnp.inf, zero + 1)
        shift = _loops.fori_loop(0, _SHIFTS, lambda _, carry: step(carry), start)[0]
        error = jnp.abs(excess(shift, (self, target)))
        enough = jnp.sqrt(jnp.finfo(p.z.dtype).eps) * jnp.maximum(target, 1)
        shift = jnp.where(error <= enough, shift, jnp.nan)

        def divide(slope, right):
            return right / slope(jnp.ones_like(right))

        return self._shifted(implicit(excess, divide, shift, (self, target)))

    def _shifted(self, shift: jax.Array) -> "Policy":
        p = self.problem
        moved = eqx.tree_at(
            lambda p: (p.z, p.scores),
            p,
            (p.z + p.temperature * shift, p.scores + p.temperature * shift),
        )
        if p.background is not None:
            scores = p.background.scores + p.temperature * shift
            moved = eqx.tree_at(lambda p: p.background.scores, moved, scores)
        fields = moved, _expand(moved)
        return eqx.tree_at(
            lambda q: (q.problem, q.expansion), self, fields, is_leaf=lambda x: x is None
        )

    def _means(self) -> Means:
        return _complete(self.problem, _law.means(self.problem, self.expansion))

    def _feasible(self) -> jax.Array:
        return _law.log_partition(self.problem, self.expansion).rest != -jnp.inf


@jax.jit
def _log_prob(policy: Policy, sets: jax.Array) -> jax.Array:
    p = policy.problem
    valid, scores, costs = _sets.look_up(sets, p)
    value = _law.log_partition(p, policy.expansion)
    added = jnp.sum(costs, axis=-1, dtype=jnp.int32)
    low, high = p.limits
    # In differences from the centre, so that a huge offset common to all scores cancels.
    anchors = value.centre * p.temperature * costs.astype(value.centre.dtype)
    total = jnp.sum(_law.relative(scores, anchors, p.temperature), axis=-1)
    total = total + value.centre * (added.astype(total.dtype) - value.size)
    valid &= (added >= low) & (added <= high) & (value.rest > -jnp.inf)
    available = jnp.all(scores > -jnp.inf, axis=-1)
    overflow = (jnp.isinf(total) & available) | (value.rest == jnp.inf)
    result = total - value.rest
    result = jnp.where(result > 0, result - lax.stop_gradient(result), result)
    result = jnp.where(valid & (total > -jnp.inf), result, -jnp.inf)
    return jnp.where(jnp.isnan(value.rest) | (valid & overflow), jnp.nan, result)


@jax.jit
def _kl(policy: Policy, other: Policy) -> jax.Array:
    p, q = policy.problem, other.problem
    mean, own = policy._means(), _law.log_partition(p, policy.expansion)
    added = _law.means(p, policy.expansion)
    others = _law.log_partition(q, other.expansion)
    spent = (p.spent - q.spent).astype(own.rest.dtype)
    shift = (own.size - others.size) + spent + mean.excess
    rest = mean._replace(
        chosen=jnp.where(q.held, 0, mean.chosen), left_out=jnp.where(q.held, 1, mean.left_out)
    )
    value = _law.cross_entropy(shift, rest, q, other.expansion) - _law.cross_entropy(
        added.excess, added, p, policy.expansion
    )
    within = _sets.sizes_within(p, q, mean.law) & jnp.all(~q.held | (mean.left_out <= 0))
    value = jnp.where(within, _not_negative(value), jnp.inf)
    empty, other_empty = ~policy._feasible(), ~other._feasible()
    value = jnp.where(empty | other_empty, jnp.where(empty & other_empty, 0, jnp.inf), value)
    same = True if p.costs is None else jnp.all(p.costs == q.costs)
    return jnp.where(p.usable & q.usable & same, value, jnp.nan)


@jax.jit
def _covariance(policy: Policy, u: jax.Array) -> jax.Array:
    p = policy.problem

    def chosen(step):
        moved = eqx.tree_at(lambda p: p.z, p, p.z + p.temperature * step * u)
        return _law.means(moved, policy.expansion).chosen

    zero = jnp.zeros((), p.z.dtype)
    return jax.jvp(chosen, (zero,), (jnp.ones_like(zero),))[1]


@jax.jit
def _expand(p: Problem) -> Expansion | None:
    return lax.stop_gradient(_law.expand(p))


def _bound(p: Problem) -> Problem:
    """The same problem by the polynomial, also where the budget does not bind."""
    return dataclasses.replace(p, free=False)


def _complete(p: Problem, mean: Means) -> Means:
    """With the given tools, where any set is feasible."""
    if p.given is None:
        return mean
    feasible = jnp.sum(mean.law) > 0
    return mean._replace(
        chosen=jnp.where(p.held, jnp.where(feasible, 1.0, 0.0), mean.chosen),
        left_out=jnp.where(p.held, 0, mean.left_out),
    )


def _not_negative(value: jax.Array) -> jax.Array:
    """The value clamped, its derivative not."""
    return jnp.where(value < 0, value - lax.stop_gradient(value), value)
