"""Tabular Markov decision processes with entropy regularisation: the lower level of bilevel RL,
solved exactly.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, either, integer, real, record, tolerance
from jaxsac._arguments.numbers import LOOKED_AT
from jaxsac._implicit import implicit
from jaxsac._iterate import Certificate, iterate
from jaxsac.solution import Solution, Status, register


@register
class MDP(NamedTuple):
    """Dynamics of S states and A actions.

    Rows of `transition` sum to one, or to less where an episode may end. Policies never take an
    action that is not available.
    """

    transition: jax.Array  # [S, A, S] probabilities of the next state
    initial: jax.Array  # [S] probabilities of the first state
    discount: Any  # [] in [0, 1)
    available: jax.Array | None = None  # bool [S, A], one or more in a row; None: all

    @property
    def dtype(self) -> Any:
        return getattr(self.transition, "dtype", None)


@register
class SoftValues(NamedTuple):
    """The entropy-regularised optimum of a tabular process."""

    v: jax.Array  # [S] values, with the entropy bonus
    q: jax.Array  # [S, A], of what is not available as if it were
    log_probs: jax.Array  # [S, A] of the policy; −inf: not available


def _next_values(mdp: MDP, v: jax.Array) -> jax.Array:
    return jnp.einsum("sat,t->sa", mdp.transition, v, precision="highest")


def _backup(
    mdp: MDP, reward: jax.Array, temperature: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q = reward + mdp.discount * _next_values(mdp, v)
    return temperature * jax.nn.logsumexp(only_available(mdp, q / temperature), axis=1), q


def only_available(mdp: MDP, table: jax.Array, other: float = -jnp.inf) -> jax.Array:
    """The table [..., S, A], `other` where an action is not available."""
    return table if mdp.available is None else jnp.where(mdp.available, table, other)


def _greedy(mdp: MDP, q: jax.Array, temperature: jax.Array) -> jax.Array:
    """log π of the values q, the softmax over what is available."""
    return jax.nn.log_softmax(only_available(mdp, q / temperature), axis=1)


_PARTS = {
    "transition": real("S", "A", "S", low=0),
    "initial": real("S", low=0),
    "discount": real(low=0, below=1),
}
_AVAILABLE = real("S", "A", low=0, high=1, own=True)  # True and False, or 1 and 0
_VALUES = real("S")


def checked(mdp: MDP, reward: jax.Array, log_probs: jax.Array | None = None) -> MDP:
    """The process with arrays of the reward's dtype; a traced discount of 1 or more is NaN. An
    error where rows, or a policy's, cannot be probabilities.
    """
    sizes = dict(zip("SA", reward.shape, strict=True))
    transition, initial, discount = (
        kind.convert(f"mdp.{name}", getattr(mdp, name), sizes, reward.dtype)
        for name, kind in _PARTS.items()
    )
    _require_chances("mdp.transition", transition, "or less, where an episode may end", 0.0)
    _require_chances("mdp.initial", initial, "as chances do")
    if log_probs is not None and _checks.is_concrete(log_probs):
        _require_chances(
            "exp(log_probs)", np.exp(log_probs), "take jax.nn.log_softmax of logits first"
        )
    discount = jnp.where((discount >= 0) & (discount < 1), discount, jnp.nan)
    available = mdp.available
    if available is not None:
        available = _AVAILABLE.convert("mdp.available", available, sizes, reward.dtype) > 0
        _checks.require(
            not (_checks.is_concrete(available) and (~np.asarray(available)).all(axis=-1).any()),
            "mdp.available must leave one action or more in every state.",
        )
    return MDP(transition, initial, discount, available)


def _require_chances(name: str, chances: Any, advice: str, least: float = 1 - 1e-3) -> None:
    if _checks.is_concrete(chances) and chances.size <= LOOKED_AT:
        rows = np.asarray(chances).sum(axis=-1)
        wrong = np.any(rows > 1 + 1e-3) or np.any(rows < least)  # NaN is left to the status
        _checks.require(not wrong, f"{name} must have rows that sum to one ({advice}).")


@arguments(
    mdp=record(MDP),
    reward=real("S", "A"),
    temperature=real(above=0),
    tol=real(low=0),
    max_steps=integer(low=0),
    state=either(record(Solution), _VALUES),
)
def soft_solve(
    mdp: MDP,
    reward: jax.Array,
    temperature: Any,
    *,
    tol: Any = None,
    max_steps: Any = 100,
    state: jax.Array | Solution | None = None,
) -> Solution:
    """The optimal entropy-regularised policy of a tabular MDP, by soft policy iteration.

        V(s) = temperature · log Σ_a exp(Q(s, a) / temperature),  Q = reward + discount · P V,
        log π = (Q − V) / temperature

    Every step is a Newton step with an S × S solve, so a dozen is usual. Differentiable in reward,
    mdp and temperature, to any order: the exact hypergradient of a bilevel RL problem is `jax.grad`
    through it.

    * `mdp`: an `MDP`.
    * `reward`: [S, A].
    * `temperature`: > 0.
    * `tol`: relative; 1e-6 in float64 and 1e-4 in float32.
    * `state`: where to start, V [S] or an earlier solution of a process like this one; None: 0.

    Returns: a `Solution`, whose value is `SoftValues` and whose state is V. CONVERGED: max |V − TV|
    / (1 − discount) + rounding ≤ tol · max(1, max |V|), which bounds the error of V.

    Raises: ValueError for a discount outside [0, 1) or a temperature ≤ 0 (traced: NONFINITE), and
    for rows that are no probabilities.

    Source: Haarnoja et al. 2017; Geist et al. 2019.
    """
    mdp = checked(mdp, reward)
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
    v = state.state if isinstance(state, Solution) else state
    v = 0 * reward[:, 0] if v is None else _VALUES.take("state", v, reward.dtype, S=len(reward))
    return _soft_solve(mdp, reward, temperature, v, tolerance(tol, reward.dtype), max_steps)


@jax.jit
def _soft_solve(mdp, reward, temperature, start, tol, max_steps) -> Solution:
    eps = float(jnp.finfo(reward.dtype).eps)
    fixed_mdp, fixed_reward, fixed_temperature = jax.lax.stop_gradient((mdp, reward, temperature))

    def step(v):
        _, q = _backup(fixed_mdp, fixed_reward, fixed_temperature, v)
        return _policy_value(
            fixed_mdp, fixed_reward, _greedy(fixed_mdp, q, fixed_temperature), fixed_temperature
        )

    def certify(v):
        residual = jnp.max(jnp.abs(v - _backup(fixed_mdp, fixed_reward, fixed_temperature, v)[0]))
        size = jnp.maximum(1.0, jnp.max(jnp.abs(v))).astype(v.dtype)
        horizon = 1 / (1 - fixed_mdp.discount)
        return Certificate(residual * horizon, eps * size * horizon, size)

    start = jax.lax.stop_gradient(start)
    outcome = iterate(step, certify, start, tol=jax.lax.stop_gradient(tol), max_steps=max_steps)

    def residual(v, params):
        mdp, reward, temperature = params
        return v - _backup(mdp, reward, temperature, v)[0]

    v = implicit(residual, _dense_solve, outcome.state, (mdp, reward, temperature), symmetric=False)
    _, q = _backup(mdp, reward, temperature, v)
    log_probs = _greedy(mdp, q, temperature)
    failed = outcome.status == Status.NONFINITE
    values = jax.tree.map(
        lambda leaf: jnp.where(failed, jnp.nan, leaf), SoftValues(v, q, log_probs)
    )
    return Solution(values, outcome.status, outcome.stats, outcome.state)


def _dense_solve(matvec, right_side):
    identity = jnp.eye(right_side.shape[0], dtype=right_side.dtype)
    return _solve(jax.vmap(matvec, out_axes=1)(identity), right_side[:, None])[:, 0]


@custom_vmap
def _one_by_one(matrix: jax.Array, right_side: jax.Array) -> jax.Array:
    return jnp.linalg.solve(matrix, right_side)


@_one_by_one.def_vmap
def _map_one_by_one(size, batched, matrix, right_side):
    if batched[0]:
        pairs = (
            matrix,
            right_side if batched[1] else jnp.broadcast_to(right_side, (size, *right_side.shape)),
        )
        return lax.map(lambda pair: _one_by_one(*pair), pairs), True
    # one matrix: one factorisation, and the right sides are its columns
    columns = jnp.moveaxis(right_side, 0, -1)
    solved = _one_by_one(matrix, columns.reshape(columns.shape[0], -1))
    return jnp.moveaxis(solved.reshape(columns.shape), -1, 0), True


def _solve(matrix: jax.Array, right_side: jax.Array) -> jax.Array:
    """matrix⁻¹ right_side for [S, S] and [S, n]; a batch of matrices one after another on CPUs.

    A batched LU there waits, in a thread of XLA's pool, for other threads of the pool: two at once
    can lock a small machine for good.
    """
    return _loops.platform_dependent(matrix, right_side, cpu=_one_by_one, default=jnp.linalg.solve)


@arguments(
    mdp=record(MDP), reward=real("S", "A"), log_probs=real("S", "A"), temperature=real(low=0)
)
def policy_value(
    mdp: MDP, reward: jax.Array, log_probs: jax.Array, temperature: Any = 0.0
) -> jax.Array:
    """The values V [S] of a policy, by a dense solve.

        V = (I − discount · P_π)⁻¹ (r_π + temperature · entropy)

    * `mdp`: an `MDP`; `reward`: [S, A]; `log_probs`: [S, A] of the policy; `temperature`: ≥ 0.

    Raises: ValueError for a discount outside [0, 1) (traced: NaN), and for rows, of the process or
    the policy, that are no probabilities.
    """
    return _policy_value(checked(mdp, reward, log_probs), reward, log_probs, temperature)


def _policy_value(mdp, reward, log_probs, temperature):
    probs = jnp.exp(log_probs)
    bonus = jnp.where(
        probs > 0,
        jnp.asarray(temperature, reward.dtype) * jnp.where(probs > 0, log_probs, 0.0),
        0.0,
    )
    gain = jnp.sum(probs * (reward - bonus), axis=1)
    moves = jnp.asarray(mdp.discount, reward.dtype) * jnp.einsum(
        "sa,sat->st", probs, mdp.transition, precision="highest"
    )
    matrix = jnp.eye(reward.shape[0], dtype=reward.dtype) - moves
    return lax.custom_linear_solve(
        lambda v: jnp.matmul(matrix, v, precision="highest"),
        gain,
        solve=lambda _, right_side: _solve(matrix, right_side[:, None])[:, 0],
        transpose_solve=lambda _, right_side: _solve(matrix.T, right_side[:, None])[:, 0],
    )


@arguments(
    mdp=record(MDP), reward=real("S", "A"), log_probs=real("S", "A"), temperature=real(low=0)
)
def expected_return(
    mdp: MDP, reward: jax.Array, log_probs: jax.Array, temperature: Any = 0.0
) -> jax.Array:
    """initial · V, the discounted return (with entropy bonus) of a policy, exactly; arguments as in
    `policy_value`.
    """
    mdp = checked(mdp, reward, log_probs)
    value = _policy_value(mdp, reward, log_probs, temperature)
    return jnp.vdot(mdp.initial, value, precision="highest")
