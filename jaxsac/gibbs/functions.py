"""Questions to a budgeted Gibbs policy that is asked once: `Policy` as functions of its scores."""

from typing import Any, TypedDict, Unpack

import jax

from jaxsac import _arguments
from jaxsac._arguments import integer, passes_on, real, size
from jaxsac.gibbs.policy import Policy


class Options(TypedDict, total=False):
    """The options of `Policy`, in its words."""

    exactly: bool
    max_budget: int | None
    costs: Any
    background: tuple[Any, Any] | None
    temperature: Any
    given: Any
    at_least: Any


@passes_on(Policy)
def log_partition(z: Any, budget: Any, **options: Unpack[Options]) -> jax.Array:
    """Log-partition function of the Gibbs policy over budgeted sets of tools.

        log Z = log Σ_a exp(Σ_{j ∈ a} z_j / temperature)

    The gradient is `marginals`, over the temperature; derivatives of every order are exact.

    * `z`, `budget`, `options`: as in `Policy`.

    Returns: log Z in nats, []; −inf where no set is feasible, NaN where something traced is out of
    its range.

    Source: arXiv 2601.08271 (the policy); log Z is e₀ + … + e_B of the weights, elementary
    symmetric polynomials.
    """
    return Policy(z, budget=budget, **options).log_partition()


@passes_on(Policy)
def marginals(z: Any, budget: Any, **options: Unpack[Options]) -> Any:
    """Inclusion probabilities P(j ∈ a) of the Gibbs policy over budgeted sets: `temperature` times
    the gradient of `log_partition`.

    * `z`, `budget`, `options`: as in `Policy`.

    Returns: [M]; with a background the pair (marginals of the tools of z [M], marginal of each tool
    of a background group [C]). All 0 where no set is feasible.
    """
    return Policy(z, budget=budget, **options).marginals()


@passes_on(Policy)
def entropy(z: Any, budget: Any, **options: Unpack[Options]) -> jax.Array:
    """Entropy of the Gibbs policy over budgeted sets, −Σ_a π(a) log π(a), in nats.

    * `z`, `budget`, `options`: as in `Policy`.

    Returns: []; 0 where no set is feasible (the policy then surely takes no action).
    """
    return Policy(z, budget=budget, **options).entropy()


@passes_on(Policy, other=real("M"))
def kl(z: Any, other: Any, budget: Any, **options: Unpack[Options]) -> jax.Array:
    """Kullback–Leibler divergence Σ_a p(a) log(p(a) / q(a)) of the Gibbs policies p of `z` and q of
    `other`, in nats.

    * `other`: scores [M] of the second policy; the rest, common to both, as in `Policy`.

    Returns: []; +inf where `other` lacks a tool that `z` uses, or all feasible sets; 0 where
    neither has a feasible set. For policies of different options: `Policy.kl`.
    """
    first, second = (Policy(scores, budget=budget, **options) for scores in (z, other))
    return first.kl(second)


@passes_on(Policy, a=integer(...))
def log_prob(a: Any, z: Any, budget: Any, **options: Unpack[Options]) -> jax.Array:
    """Log-probability of sets of tools, log π(a) = Σ_{j ∈ a} z_j / temperature − log Z, in nats.

    The gradient in z is 1_a − `marginals`, over the temperature.

    * `a`: tool indices [..., W], integers; −1 (`NO_ACTION`) is ignored anywhere and order is
      irrelevant. With a background, its tools are numbered after those of z, group by group.
    * `z`, `budget`, `options`: as in `Policy`.

    Returns: [...]; −inf for a set that cannot be drawn. Raises: as `Policy.log_prob`.
    """
    return Policy(z, budget=budget, **options).log_prob(a)


@passes_on(Policy, key=_arguments.key(), num_samples=size())
def sample(
    key: jax.Array, z: Any, budget: Any, num_samples: int, **options: Unpack[Options]
) -> jax.Array:
    """Independent exact draws from the Gibbs policy over budgeted sets (Gumbel top-k draws from
    another distribution, Plackett–Luce).

    * `key`: a random key; it is consumed.
    * `num_samples`: ≥ 0; static.
    * `z`, `budget`, `options`: as in `Policy`.

    Returns: int32 [num_samples, W], padded with −1 (`NO_ACTION`), as `Policy.sample`.
    """
    return Policy(z, budget=budget, **options).sample(key, num_samples)


@passes_on(Policy)
def mode(z: Any, budget: Any, **options: Unpack[Options]) -> jax.Array:
    """The most likely set of tools: the budgeted set of largest total score.

    Ties go to the lowest index, and tools with a score ≤ 0 are taken only where they must be. Not
    differentiable. With `costs`, time and memory M · budget.

    * `z`, `budget`, `options`: as in `Policy`.

    Returns: int32 [W], highest score first, padded with −1; W is the (largest) budget, with `costs`
    the size of the largest feasible set (M where the costs are traced). All −1 where no set is
    feasible.
    """
    return Policy(z, budget=budget, **options).mode()
