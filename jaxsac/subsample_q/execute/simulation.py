"""Execution on n agents: fresh samples of k each step, the reward of all n, in counts (cost free of
n) or agent by agent (for checks); once for every kind of model.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, either, function, integer, key, size
from jaxsac.solution import register
from jaxsac.subsample_q.data.kinds import MODEL, LocalActionModel, TypedModel
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.data.sampling import (
    STATE,
    check_state,
    draw_parts,
    draw_row,
    draw_state,
    move_counts,
)
from jaxsac.subsample_q.exact.local_actions import ANY_TABLE, AssignmentTable, local_chances
from jaxsac.subsample_q.exact.table import QTable, chances_of, local_rewards


@register
class Run(NamedTuple):
    """One trajectory of H steps, in counts of agents."""

    rewards: jax.Array  # [H]
    global_states: jax.Array  # int32 [H]
    counts: jax.Array  # int32 [H, L]; of E types [H, E, L]
    actions: jax.Array  # int32 [H], global ones
    discounted_return: jax.Array  # []
    local_actions: jax.Array | None = None  # int32 [H, L, B], where agents act: how many take each


class Stage(NamedTuple):
    """What happens in one step."""

    action: jax.Array  # int32 []
    reward: jax.Array  # []
    counts: Any  # int32 [..., L], before the move; None where agents are not counted
    global_state: Any  # after it
    population: Any  # counts or states of the agents, after it
    local_actions: jax.Array | None = None  # int32 [L, B]


POLICY = either(ANY_TABLE, function("(s_g, counts) -> action [], or chances [A]"))


@arguments(
    key=key(),
    model=MODEL,
    policy=POLICY,
    num_agents=either(integer(low=1), integer("E", low=1)),
    horizon=size(1),
    initial=STATE,
)
def simulate(
    key: jax.Array,
    model: Model | TypedModel | LocalActionModel,
    policy: Any,
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of k sampled agents on num_agents of them, in counts: the cost does not
    grow with num_agents.

    Each step draws k agents uniformly without replacement, independently of the past (exact
    hypergeometric draw), acts by the table's policy, pays r_g + (1/n) ⟨counts, r_l⟩ on all n, and
    moves all n (exact multinomial draws from binomials). Agents who act each sample k − 1 others
    for themselves, and take b with the chance assignment[s, b] / h_s of the histogram h of the
    sample and themselves. Batch with `jax.vmap` or `run_trials`; the same key gives different k
    common random numbers.

    * `key`: consumed.
    * `model`: a `Model`, `TypedModel` (whose shares weigh types in the reward: keep num_agents in
      proportion) or `LocalActionModel`.
    * `policy`: a table of `solve` and the like, or the Solution that has it; where agents do not
      act also a rule of your own, a function of (s_g, counts int32 [L], of types [E, L]) that gives
      an action or the chances [A] of all. It is a part of the trace: make it once.
    * `num_agents`: of types int32 [E].
    * `horizon`: steps, static.
    * `initial`: (global state, counts int32 [L] that sum to num_agents; of types [E, L]).

    Returns: a `Run`. Its derivatives are those of the rewards alone: the draws jump with the
    transitions. Rewards are NaN from a traced state that does not exist, and of an action that is
    not allowed.

    Raises: ValueError for k > num_agents, counts that do not sum to it, more agents than the dtype
    counts exactly (2^24 in float32), a table of another kind than the model, and a model of agents
    whose choices `allowed` joins, which agents who choose alone cannot keep.

    Source: arXiv 2403.00222, algorithm 2; agents who act: arXiv 2412.00661, algorithm 2.
    """
    types = model.num_types if isinstance(model, TypedModel) else 0
    shape = (types, model.num_local_states) if types else (model.num_local_states,)
    rule = None if isinstance(policy, QTable | AssignmentTable) else policy
    acts = isinstance(model, LocalActionModel)
    if rule is None:
        check_kind(model, policy)
        ks = policy.meaning.ks
    else:
        _checks.require(not acts, "policy: agents who act need a table of `solve`.")
        ks = (1,) * max(types, 1)
    valid = check_state(initial, (model.num_global_states, *shape), ks, num_agents, model.dtype)
    table = policy if rule is None else None
    return _simulate(key, model, table, initial, valid, rule=rule, horizon=horizon)


def check_kind(model: Any, table: Any) -> None:
    """Refuse a table of another kind than the model's."""
    types, acts = isinstance(model, TypedModel), isinstance(model, LocalActionModel)
    wanted = "agents who act" if acts else f"{model.num_types} types" if types else "a plain model"
    number = model.num_types if types else 1
    fits = isinstance(table, AssignmentTable) == acts and len(table.meaning.ks) == number
    fits = fits and (acts or (table.histograms.ndim == 3) == types)
    _checks.require(fits, f"table must be of {wanted}: solve that model.")
    if acts:
        B, held = model.num_local_actions, table.assignment.shape[-1]
        _checks.require(held == B, f"table must have B = {B} local actions, got {held}.")
        _checks.require(
            model.joint is None,
            "allowed restricts joint assignments, which agents who choose independently do not"
            " keep: give it as bool [G, L, B].",
        )


@functools.partial(jax.jit, static_argnames=("rule", "horizon"))
def _simulate(key, model, table, start, valid, *, rule, horizon):
    acts = isinstance(model, LocalActionModel)

    def step(key, global_state, counts):
        sample_key, choice_key, move_key = jax.random.split(key, 3)
        if rule is None:
            row = draw_row(sample_key, counts, table.meaning.ks)
            action, lawful = table.policy[global_state, row], jnp.bool_(True)
        else:
            A = model.num_actions
            chances = chances_of(rule(global_state, counts), A, model.dtype)
            lawful = jnp.all(jnp.isfinite(chances))
            action = draw_state(sample_key, jnp.where(lawful, chances, 1 / A))
        taken = None
        if acts:
            taken = draw_parts(choice_key, counts, local_chances(table, global_state, counts))
        elif model.allowed is not None:
            lawful &= model.allowed[global_state, action]
        reward = stage_reward(model, global_state, counts, action, taken)
        moved = move(move_key, model, global_state, counts, action, taken)
        return Stage(action, jnp.where(lawful, reward, jnp.nan), counts, *moved, taken)

    return rollout(key, step, start, valid, model.discount, horizon)[0]


def rollout(
    key: jax.Array,
    step: Callable[[jax.Array, jax.Array, jax.Array], Stage],
    start: tuple[Any, Any],
    valid: Any,
    discount: jax.Array,
    horizon: int,
) -> tuple[Run, tuple[Any, Any]]:
    """`horizon` times step(key, global state, population) from `start` = these two; a discounted
    sum of what they pay, NaN from a start that is not `valid`, and the state after them.
    """
    unknown = jnp.where(valid, 0, jnp.nan).astype(discount.dtype)

    def advance(carried, key):
        global_state, population, factor, total = carried
        stage = step(key, global_state, population)
        after = stage.global_state, stage.population
        reward = stage.reward + unknown
        record = reward, global_state, stage.counts, stage.action, stage.local_actions
        return (*after, factor * discount, total + factor * reward), record

    one = jnp.ones_like(discount)
    carry = (*jax.tree.map(jnp.asarray, start), one, 0 * one)
    carried, record = _loops.scan(advance, carry, jax.random.split(key, horizon))
    rewards, states, counts, actions, taken = record
    return Run(rewards, states, counts, actions, carried[-1], taken), carried[:2]


def shares_of(counts: jax.Array, dtype: Any) -> jax.Array:
    """Counts [..., L] as parts of their sum."""
    total = jnp.sum(counts, axis=-1, keepdims=True, dtype=jnp.int32)
    return counts.astype(dtype) / total.astype(dtype)


def stage_reward(
    model: Any, global_state: jax.Array, counts: jax.Array, action: jax.Array, taken: Any = None
) -> jax.Array:
    """What one stage pays, with `taken` [L, B] of agents who act: []."""
    if isinstance(model, LocalActionModel):
        base = model.base
        shares = shares_of(taken.reshape(-1), model.dtype).reshape(taken.shape)
        own = jnp.vdot(shares, base.local_reward[global_state].T, precision="highest")
        if model.share_reward is not None:
            pays = True if model.terminal is None else ~model.terminal[global_state]
            own = own + jnp.where(pays, model.share_reward(global_state, shares), 0)
        return base.global_reward[global_state, action] + own
    shares = shares_of(counts, model.dtype)
    rewards, weights = local_rewards(model)  # [E, G, A or 1, L] and [E]
    local = rewards[:, global_state, action if rewards.shape[2] > 1 else 0]
    earned = jnp.sum(shares.reshape(local.shape) * local, axis=1)
    own = jnp.vdot(weights, earned, precision="highest")
    return model.global_reward[global_state, action] + own


def move(
    key: jax.Array,
    model: Any,
    global_state: jax.Array,
    counts: jax.Array,
    action: jax.Array,
    taken: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """The next global state and counts."""
    global_key, local_key = jax.random.split(key)
    if isinstance(model, LocalActionModel):
        transition, kernel = model.base.global_transition, model.pair_kernels()[global_state]
        moved = move_counts(local_key, taken.reshape(-1), kernel)
    elif isinstance(model, TypedModel):
        transition, kernels = model.global_transition, model.local_transition[:, global_state]
        kernels = kernels[:, action] if kernels.ndim == 4 else kernels
        keys = jax.random.split(local_key, model.num_types)
        moved = jnp.stack([move_counts(*one) for one in zip(keys, counts, kernels, strict=True)])
    else:
        transition, kernel = model.global_transition, model.local_transition[global_state]
        kernel = kernel[action] if model.action_drives_agents else kernel
        moved = move_counts(local_key, counts, kernel)
    return draw_state(global_key, transition[global_state, action]), moved
