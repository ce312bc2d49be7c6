"""The paper's m-sample operator: learning on k agents from samples of the model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _loops
from jaxsac._arguments import arguments, choice, flag, integer, key, real, size
from jaxsac.solution import Solution
from jaxsac.subsample_q.data.histograms import check_size, num_histograms
from jaxsac.subsample_q.data.kinds import PLAIN_MODEL
from jaxsac.subsample_q.data.model import Model, check_discount
from jaxsac.subsample_q.data.sampling import agent_states, by_inversion, histogram_index
from jaxsac.subsample_q.exact.iteration.fixed_point import Settings, Surrogate, fixed_point
from jaxsac.subsample_q.exact.table import (
    best_of,
    largest_value,
    permitted,
    stage_rewards,
    trivial_table,
    uncertified,
)


@arguments(
    key=key(),
    model=PLAIN_MODEL,
    k=size(1),
    num_samples=size(1),
    resample=choice("once", "per_sweep"),
    share_local=flag(),
    tol=real(low=0),
    max_steps=integer(low=0),
)
def learn(
    key: jax.Array,
    model: Model,
    k: int,
    num_samples: int,
    *,
    resample: str = "once",
    share_local: bool = False,
    tol: Any = None,
    max_steps: Any = None,
) -> Solution:
    """Learn on k agents with the paper's operator, whose expectation is a mean of m = num_samples
    draws for each state and action.

        (T_{k,m} Q)(s_g, h, a) = r(s_g, h, a) + (discount / m) Σ_{l ≤ m} max_a' Q(s_g^l, h^l, a')

    * `key`: consumed.
    * `num_samples`: m, static; draws take 4 G N A m bytes, and 16 N m k while they are made.
    * `resample`: "once": the draws are made once and used in every sweep, so that T_{k,m} is a
      contraction and its fixed point is returned (CONVERGED as in `solve`, for that fixed point).
      "per_sweep": fresh draws for each of `max_steps` sweeps (200 by default), averaged with step
      1 / (1 + (1−discount) t); that has no fixed point and ends as MAX_STEPS.
    * `share_local`: the same local draws for every action (unbiased).
    * `tol`, `max_steps`: as in `solve`.

    Returns: a Solution of a `QTable` with the trivial bounds ±max|r| / (1−discount). Its distance
    from the exact table falls as m^(−1/2). Not differentiable (all derivatives are 0): the draws
    jump with the transitions; use `solve`.

    Source: arXiv 2403.00222, algorithm 1.
    """
    check_discount(model)
    m, G, L = num_samples, model.num_global_states, model.num_local_states
    # of one (s_g, a) there are uniforms and the states that they draw, of all the positions
    check_size(k, L, m * (4 * G * model.num_actions + k * (model.dtype.itemsize + 8)))
    max_steps = (100_000 if resample == "once" else 200) if max_steps is None else max_steps
    settings = Settings.of((G, num_histograms(k, L)), model.dtype, tol, max_steps, None)
    return _learn(key, model, settings, k=k, m=m, resample=resample, share_local=share_local)


@functools.partial(jax.jit, static_argnames=("k", "m", "resample", "share_local"))
def _learn(key, model, settings, *, k, m, resample, share_local):
    model = jax.tree.map(lax.stop_gradient, model)
    rewards = stage_rewards(model, k)

    def surrogate(key):
        draws = draw_successors(key, model, k, m, share_local)
        return Surrogate(
            rewards,
            lambda values: jnp.mean(values.reshape(-1)[draws], axis=-1),
            lambda q: best_of(permitted(q, model.allowed)),
            model.discount,
        )

    if resample == "once":
        found = fixed_point(surrogate(key), None, settings, backend="sampled")
        table = trivial_table(model, k, found.q)
        return Solution(table, found.status, found.stats, found.value)

    def sweep(t, q):
        step = 1 / (1 + (1 - model.discount) * t.astype(model.dtype))
        fresh = surrogate(jax.random.fold_in(key, t)).q_of(best_of(permitted(q, model.allowed)))
        return q + step * (fresh - q)

    q = _loops.fori_loop(0, settings.max_steps, sweep, jnp.zeros(rewards.shape, model.dtype))
    table, scale = trivial_table(model, k, q), largest_value(model)
    error = scale + jnp.max(jnp.abs(q))
    return uncertified(table, error, scale, settings.max_steps, table.value)


def draw_successors(key: jax.Array, model: Model, k: int, m: int, share_local: bool) -> jax.Array:
    """Positions s_g' · N + h' of m successors of every (s_g, h, a): int32 [G, N, A, m]."""
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    N, kernels = num_histograms(k, L), model.local_transition
    if not model.action_drives_agents:
        kernels = jnp.repeat(kernels[:, None], A, axis=1)
    agents = agent_states(k, L)

    def one(pair):
        g, a = pair // A, pair % A
        global_key = jax.random.fold_in(jax.random.fold_in(key, pair), 0)
        shared = jnp.where(jnp.bool_(share_local), g * A, pair)
        local_key = jax.random.fold_in(jax.random.fold_in(key, shared), 1)
        tickets = jax.random.uniform(local_key, (N, m, k), model.dtype)
        states = by_inversion(jnp.cumsum(kernels[g, a], axis=-1)[agents][:, None], tickets)
        chances = jnp.broadcast_to(jnp.cumsum(model.global_transition[g, a]), (N, m, G))
        after = by_inversion(chances, jax.random.uniform(global_key, (N, m), model.dtype))
        return after * N + histogram_index(states, k, L)

    pairs = jnp.arange(G * A, dtype=jnp.int32)
    return lax.map(one, pairs).reshape(G, A, N, m).transpose(0, 2, 1, 3)
