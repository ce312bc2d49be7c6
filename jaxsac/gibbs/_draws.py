"""Exact draws of sets, whatever the options."""

import jax
import jax.numpy as jnp

from jaxsac.gibbs import _knapsack, _law, _sets, _tree
from jaxsac.gibbs._knapsack import Tables
from jaxsac.gibbs._law import Expansion
from jaxsac.gibbs._problem import NO_ACTION, Problem


@jax.jit(static_argnums=3)
def sample(key: jax.Array, p: Problem, e: Expansion | None, num_samples: int) -> jax.Array:
    """Sets int32 [num_samples, W], padded with −1."""
    feasible = _law.log_partition(p, e).rest > -jnp.inf
    width = p.width
    size = p.z.shape[0]
    nothing = jnp.full((num_samples, width), NO_ACTION, jnp.int32)
    if num_samples == 0 or width == 0 or (size == 0 and p.background is None):
        return nothing
    size_key, tool_key, group_key, alike_key = jax.random.split(key, 4)
    if e is None:
        chance = jax.nn.sigmoid(p.z / p.temperature)
        taken = _tree.uniform(tool_key, (num_samples, size), p.z.dtype) < chance[None, :]
        sets = jnp.where(taken, jnp.arange(size, dtype=jnp.int32)[None, :], NO_ACTION)
        sets = jnp.pad(sets, ((0, 0), (0, width - size)), constant_values=NO_ACTION)
    else:
        law = _law.means(p, e).law
        if isinstance(e.own, Tables):
            sets = _knapsack.sample(tool_key, p, e.own, law, (num_samples, width))
        else:
            sizes = jax.random.categorical(size_key, jnp.log(law), shape=(num_samples,))
            sizes = jnp.where(jnp.sum(law) > 0, sizes.astype(jnp.int32), 0)
            number, groups = sizes, None
            if e.groups is not None and e.groups.values.shape[0]:
                factors = e.groups.values
                own = jnp.zeros((p.degree + 1,), p.z.dtype).at[0].set(1)
                own = own if e.own is None else e.own.values
                number, groups = _tree.split(group_key, own, factors, sizes)
            sets = nothing
            if e.own is not None:
                tree = _tree.grow(jax.nn.sigmoid(e.tilt.of(p.z, p.temperature)), p.degree)
                sets = _tree.draw(tool_key, tree, number, width)
            if groups is not None and p.background is not None:
                alike = _tree.draw_alike(alike_key, p.background, groups, number, width)
                sets = jnp.where(alike >= 0, alike + size, sets)
        sets = jnp.where(feasible, sets, NO_ACTION)
    if p.given is not None:
        sets = _sets.with_given(p, sets)
        sets = jnp.where(feasible, sets, NO_ACTION)
    return jnp.where(p.usable, sets, NO_ACTION)
