"""Gradients through draws of sets: the straight-through estimator along the exact marginals, and
the score function with a leave-one-out baseline.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import zero_from_primal

from jaxsac import _arguments
from jaxsac._arguments import function, passes_on, real, size
from jaxsac.gibbs._sets import indicators
from jaxsac.gibbs.functions import Options
from jaxsac.gibbs.policy import Policy


@passes_on(Policy, key=_arguments.key(), num_samples=size())
def straight_through(
    key: jax.Array, z: Any, budget: Any, num_samples: int = 1, **options: Unpack[Options]
) -> jax.Array:
    """Exact draws of sets as vectors of 0 and 1, with the derivative of the exact marginals in
    place of their own, which is 0.

        a_i ~ π,   d a_i := d E[a] = Cov(a) dz / temperature

    A loss of the draws then has the gradient Cov(a) Σ_i ∂loss/∂a_i / temperature, which is right
    where the loss is linear in each draw, and biased elsewhere (`expected` is not, for any
    function). It costs one product with the covariance, O(M B), whatever the number of draws.
    Second derivatives, reverse over reverse, are those of the marginals; there is no forward mode.

    * `key`: a random key; it is consumed.
    * `num_samples`: ≥ 0; static.
    * `z`, `budget`, `options`: as in `Policy`. Tools of a background are drawn, and left out of the
      vectors.

    Returns: [num_samples, M], each entry exactly 0 or 1, in the dtype of z. All 0 where no set is
    feasible; NaN where a score is NaN or +inf, or a traced temperature is not positive.

        loss = lambda z: network(features * gibbs.straight_through(key, z, budget=5)[0])
        jax.grad(loss)(z)

    Source: Ahmed, Zeng, Niepert and Van den Broeck, SIMPLE, ICLR 2023 (arXiv 2210.01941), section
    3, for exactly k items; at most B and bounded costs are this library's.
    """
    policy = Policy(z, budget=budget, **options)
    return _straight_through(num_samples, key, policy)


@passes_on(
    Policy, key=_arguments.key(), f=function("of one set as a vector [M]"), num_samples=size(2)
)
def expected(
    key: jax.Array,
    f: Callable[[jax.Array], Any],
    z: Any,
    budget: Any,
    num_samples: int,
    **options: Unpack[Options],
) -> Any:
    """Mean of f over draws of sets, an unbiased estimate of E[f(a)] with unbiased derivatives.

        (1 / n) Σ_i f(a_i),   derivative by z: (1 / (n − 1)) Σ_i (f(a_i) − mean of f) ∇ log π(a_i)

    It is the score function with the mean of the other draws as the baseline of each. Whatever else
    f depends on (parameters, traced values that it closes over, z itself) has its pathwise
    derivative. Derivatives of every order are unbiased, by z and by those, and mixed. Nothing is
    asked of f between 0 and 1: it may be discontinuous, or call for a choice of tools.

    * `key`: a random key; it is consumed.
    * `f`: from one set as a vector of 0 and 1, [M] in the dtype of z, to a real array, a scalar as
      a rule, or a pytree of them; called once, under `jax.vmap`.
    * `num_samples`: ≥ 2; static. The variance is of order 1 / num_samples.
    * `z`, `budget`, `options`: as in `Policy`; f sees the tools of z, not those of a background.

    Returns: what f returns, averaged; f at the empty set where no set is feasible; NaN where a
    score is NaN or +inf, or a traced temperature is not positive.

        worth = lambda z: gibbs.expected(key, lambda a: reward(a @ features), z, 5, 64)
        jax.grad(worth)(z)

    Source: Kool, van Hoof and Welling, Buy 4 REINFORCE samples, get a baseline for free!, ICLR 2019
    workshop; the form for all orders is of Foerster et al., DiCE, ICML 2018 (arXiv 1802.05098).
    """
    policy = Policy(z, budget=budget, **options)
    draws, factor, usable = _scored(key, policy, num_samples)
    return jax.tree.map(partial(_averaged, factor, usable), jax.vmap(f)(draws))


def _averaged(factor: jax.Array, usable: jax.Array, values: Any) -> jax.Array:
    """The mean of values [n, ...]. `factor` [n] is 0, with the derivative of log π."""
    values = real(...).take("what f returns", values)
    mean = jnp.mean(values, axis=0, keepdims=True)
    num_samples = values.shape[0]
    # f_i less the mean of the others.
    advantage = (values - mean) * (num_samples / (num_samples - 1))
    factor = factor.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
    number = jnp.where(usable, 1, jnp.nan).astype(values.dtype)  # NaN derivatives too
    return number * jnp.mean(values + factor * advantage, axis=0)


# A rule for the reverse mode alone: the Jacobian of the marginals is symmetric, so that its product
# with a cotangent is a derivative along it, faster than the transposed program that a rule for both
# modes would run. Second derivatives are reverse over reverse. The value is the draw itself, to the
# bit, as it would not be in draw + marginals − stop_gradient(marginals).
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hard(num_samples: int, key: jax.Array, policy: Policy) -> jax.Array:
    z, sets = policy.problem.z, lax.stop_gradient(policy).sample(key, num_samples)
    draws = indicators(sets, z.size, z.dtype)
    return jnp.where(policy.problem.usable, draws, jnp.nan)


def _hard_forward(num_samples, key, policy):
    return _hard(num_samples, key, policy), policy


def _hard_backward(num_samples, policy, cotangent):
    p = policy.problem
    along = jnp.sum(cotangent, axis=0)

    def moved(step):
        z = p.z + p.temperature * step * along
        return eqx.tree_at(lambda policy: policy.problem.z, policy, z).marginals()

    step = jnp.zeros((), p.z.dtype)
    product = jax.jvp(moved, (step,), (jnp.ones_like(step),))[1]
    zeros = jax.tree.map(zero_from_primal, policy)
    if p.background is None:
        own, heat = product, _by_temperature(p.z, product)
    else:
        own, groups = product
        groups = groups * p.background.counts.astype(groups.dtype)
        heat = _by_temperature(p.z, own) + _by_temperature(p.background.scores, groups)
        zeros = eqx.tree_at(
            lambda policy: policy.problem.background.scores, zeros, groups / p.temperature
        )
    number = jnp.where(p.usable, 1, jnp.nan).astype(p.z.dtype)
    found = number * own / p.temperature, -number * heat / p.temperature**2
    return None, eqx.tree_at(
        lambda policy: (policy.problem.z, policy.problem.temperature), zeros, found
    )


_hard.defvjp(_hard_forward, _hard_backward)
_straight_through = jax.jit(_hard, static_argnums=0)


def _by_temperature(scores: jax.Array, product: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(jnp.isfinite(scores), scores, 0) * product)


@partial(jax.jit, static_argnums=2)
def _scored(key: jax.Array, policy: Policy, num_samples: int):
    """Draws [n, M], zeros [n] with the derivative of what multiplies f in an expectation, π over
    its own value, and whether the scores are numbers.
    """
    z, sets = policy.problem.z, lax.stop_gradient(policy).sample(key, num_samples)
    draws = indicators(sets, z.size, z.dtype)
    return draws, _grown(policy.log_prob(sets)), policy.problem.usable


@jax.custom_jvp
def _grown(x: jax.Array) -> jax.Array:
    """exp(x − stop_gradient(x)) − 1: the number 0, whatever x is, with derivatives of every
    order.
    """
    # Not zeros_like: a value that does not depend on a mapped x, with a derivative that does, gets
    # a wrong shape where a jitted function is mapped and then differentiated.
    return jnp.where(x == 0, x, 0)


@_grown.defjvp
def _grown_jvp(primals, tangents):
    zero = _grown(primals[0])
    return zero, (1 + zero) * tangents[0]
