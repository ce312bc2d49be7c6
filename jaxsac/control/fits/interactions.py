"""Tools that help or hinder each other: pairwise effects with strong heredity, and exact policies
over small supports.
"""

import itertools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, group_lasso
from jaxsac.control.data.digest import digest
from jaxsac.control.data.log import Log, checked
from jaxsac.prox import Groups
from jaxsac.solution import Solution, Status

PAIR_WEIGHT = math.sqrt(3)
CAPACITY = 16  # the design has room for a multiple of so many pairs
ROOM = 32  # pairs that enter at a time
MOST_SETS = 100_000
SLACK = 1e-6


class Interactions(NamedTuple):
    """u = constant + sum_{j in a} <theta_j, psi> + sum_{i < j in a} <beta_ij, psi>: tools int32 [k]
    with weights [k, q], pairs int32 [P, 2] (both in tools) with pair_weights [P, q], constant [].
    """

    tools: jax.Array
    weights: jax.Array
    pairs: jax.Array
    pair_weights: jax.Array
    constant: jax.Array


def fit_interactions(
    log: Log,
    *,
    num_actions: int,
    budget: int,
    lam: Any,
    pair_weight: float = PAIR_WEIGHT,
    tol: float | None = None,
    max_rounds: int = 50,
) -> Solution:
    """Least squares of the utility on tools and on pairs of tools used together, where a pair
    brings its two tools along.

        minimise (1/2T) sum_t (u_t - z_t)^2 + lam sum_j ||theta_j^0|| + lam w sum_{i<j} ||
        (theta_i^ij, theta_j^ij, beta_ij) || z_t = constant + sum_{j in a_t} <theta_j, psi_t> +
        sum_{i<j in a_t} <beta_ij, psi_t>,   theta_j = theta_j^0 + sum_i theta_j^ij

    Overlapping blocks in latent form: beta_ij != 0 implies that its block is not zero, so that
    theta_i and theta_j are not either (strong heredity, except on a set of measure zero). * `log`:
    with utilities. `lam` > 0; `pair_weight` w >= sqrt(2): then a pair that no record uses together
    meets its optimality condition by itself, and only observed pairs (at most T B^2 / 2) are ever
    looked at.

    Pairs enter by their gradient, up to 32 a round, until none of all observed pairs violates
    ||gradient|| <= lam w. Returns a `Solution` with `Interactions`; stats lam, objective, gap (over
    all tools and observed pairs' blocks), scale, largest_pair (largest gradient norm of a block
    outside over lam w), num_candidates (observed pairs), num_rounds. Memory T q (tools + 3 pairs
    entered): for up to some thousands of used tools. Runs on the host. ValueError as `fit`.

    Source: the interaction extension of arXiv 2601.08271; latent overlapping blocks of Jacob,
    Obozinski & Vert 2009, Lim & Hastie 2015.
    """
    num_actions = _checks.static_integer("num_actions", num_actions, 1)
    log = checked(log, num_actions, _checks.static_integer("budget", budget, 1))
    _checks.require(log.utilities is not None, "fit_interactions needs log.utilities.")
    _checks.require(
        pair_weight >= math.sqrt(2),
        f"pair_weight must be >= sqrt(2), got {pair_weight:g}: unseen pairs would have to be checked.",
    )
    data = digest(log, np.ones(np.shape(log.contexts)[0]), num_actions, budget, 0.0)
    contexts, records = np.asarray(log.contexts), data.num_records
    q, dtype = contexts.shape[1], contexts.dtype
    utilities = jnp.asarray(np.asarray(log.utilities), dtype)
    lam = float(lam)
    _checks.require(lam > 0, f"lam must be > 0, got {lam:g}.")
    tol = float(tol) if tol is not None else (1e-6 if dtype == np.float64 else 1e-4)
    used = np.zeros((records, data.used.size), bool)
    used[data.entry_record, data.entry_tool] = True
    single = (used[:, :, None] * contexts[:, None, :]).reshape(records, -1)
    pairs, pair_of, pair_record = _observed(used)
    entered = np.zeros(0, int)
    num_rounds = 0
    while True:
        num_rounds += 1
        blocks = [single]
        for i, j in pairs[entered]:
            both = (used[:, i] & used[:, j])[:, None] * contexts
            blocks.append(
                np.concatenate(
                    [single[:, i * q : (i + 1) * q], single[:, j * q : (j + 1) * q], both], axis=1
                )
            )
        room = (
            -(-entered.size // CAPACITY) * CAPACITY
        )  # empty blocks keep the shapes few: each one is compiled
        blocks.append(np.zeros((records, 3 * q * (room - entered.size))))
        sizes = [q] * data.used.size + [3 * q] * room
        weights = np.append(np.ones(data.used.size), np.full(room, pair_weight))
        design = jnp.asarray(np.concatenate(blocks, axis=1), dtype)
        groups = Groups.from_sizes(sizes)
        solution = group_lasso.solve(
            design,
            utilities,
            groups,
            lam,
            weights=jnp.asarray(weights, dtype),
            intercept=True,
            tol=tol,
        )
        coef = np.asarray(solution.value.coef, np.float64)
        residual = np.asarray(
            utilities
            - jnp.matmul(design, solution.value.coef, precision="highest")
            - solution.value.intercept,
            np.float64,
        )
        own = (residual @ single / records).reshape(-1, q)
        pulled = residual[pair_record, None] * contexts[pair_record] / records
        joint = np.stack([np.bincount(pair_of, column, len(pairs)) for column in pulled.T], axis=1)
        squares = (own[pairs] ** 2).sum((1, 2)) + (joint**2).sum(1)
        norms = np.sqrt(squares) / (lam * pair_weight)
        norms[entered] = 0
        violators = np.flatnonzero(norms > 1 + SLACK)
        if (
            not violators.size
            or num_rounds >= max_rounds
            or int(solution.status) != Status.CONVERGED
        ):
            break
        entered = np.append(entered, violators[np.argsort(-norms[violators], kind="stable")[:ROOM]])
    status = (
        solution.status if not violators.size else jnp.asarray(int(Status.MAX_STEPS), jnp.int32)
    )
    main = coef[: data.used.size * q].reshape(-1, q).copy()
    extra = coef[data.used.size * q :].reshape(-1, 3, q)[: entered.size]
    for (i, j), block in zip(pairs[entered], extra, strict=True):
        main[i] += block[0]
        main[j] += block[1]
    found = np.flatnonzero((extra[:, 2] != 0).any(1)) if extra.size else np.zeros(0, int)
    alive = np.flatnonzero((main != 0).any(1))
    value = Interactions(
        tools=jnp.asarray(data.used[alive], jnp.int32),
        weights=jnp.asarray(main[alive], dtype),
        pairs=jnp.asarray(data.used[pairs[entered][found]].reshape(-1, 2), jnp.int32),
        pair_weights=jnp.asarray(extra[found, 2].reshape(-1, q), dtype),
        constant=solution.value.intercept,
    )
    stats = {name: solution.stats[name] for name in ("objective", "gap", "scale")} | {
        "lam": jnp.asarray(lam, dtype)
    }
    stats |= {"largest_pair": jnp.asarray(norms.max(initial=0.0), dtype)}
    stats |= {
        "num_candidates": jnp.asarray(len(pairs), jnp.int32),
        "num_rounds": jnp.asarray(num_rounds, jnp.int32),
    }
    return Solution(value, status, stats, None)


def _observed(used: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs [P, 2] that a record uses together, ascending, and each use of one: its pair [E] and
    record [E].
    """
    first, second, record = [], [], []
    for t, row in enumerate(used):
        members = np.flatnonzero(row)
        i, j = np.triu_indices(members.size, 1)
        first.append(members[i])
        second.append(members[j])
        record.append(np.full(i.size, t))
    code = np.concatenate(first) * used.shape[1] + np.concatenate(second)
    codes, pair = np.unique(code, return_inverse=True)
    return (
        np.stack([codes // used.shape[1], codes % used.shape[1]], axis=1),
        pair.reshape(-1),
        np.concatenate(record),
    )


class PairwisePolicy(eqx.Module):
    """pi(a | psi) ∝ exp((sum_{j in a} <theta_j, psi> + sum_{i<j in a} <beta_ij, psi>) /
    temperature) over sets of at most B of k tools, by listing them all. sets int32 [N, B] padded
    with -1 (names of tools), features [N, k + P] of each set. A pytree.
    """

    sets: jax.Array
    features: jax.Array
    weights: jax.Array
    temperature: jax.Array

    def log_probs(self, context: Any) -> jax.Array:
        """log pi of every set, [N], for a context [q]."""
        context = _checks.real_array(
            "context", context, (self.weights.shape[1],), self.weights.dtype
        )
        scores = jnp.matmul(
            self.features,
            jnp.matmul(self.weights, context, precision="highest"),
            precision="highest",
        )
        return jax.nn.log_softmax(scores / self.temperature)

    def act(self, context: Any) -> jax.Array:
        """The most probable set, int32 [B] padded with -1."""
        return self.sets[jnp.argmax(self.log_probs(context))]

    def sample(self, key: jax.Array, context: Any) -> jax.Array:
        """An exact draw, int32 [B] padded with -1. The key is consumed."""
        return self.sets[jax.random.categorical(key, self.log_probs(context))]


def pairwise_policy(model: Interactions, *, budget: int, temperature: Any = 1.0) -> PairwisePolicy:
    """The exact policy of a model with interactions over its own k tools: with pairs, the partition
    function has no product form, so all C(k, <= B) sets are listed; ValueError above 100,000 of
    them (keep fewer tools). `temperature` > 0 in units of utility.
    """
    tools = np.asarray(model.tools)
    budget = min(_checks.static_integer("budget", budget, 1), tools.size)
    count = sum(math.comb(tools.size, r) for r in range(budget + 1))
    _checks.require(
        count <= MOST_SETS,
        f"{tools.size} tools have {count:,} sets of at most {budget}: keep fewer tools or lower the budget.",
    )
    members = [
        set_ for r in range(budget + 1) for set_ in itertools.combinations(range(tools.size), r)
    ]
    inside = np.zeros((count, tools.size), bool)
    sets = np.full((count, budget), -1, np.int32)
    for row, chosen in enumerate(members):
        inside[row, list(chosen)] = True
        sets[row, : len(chosen)] = tools[list(chosen)]
    local = np.searchsorted(tools, np.asarray(model.pairs))
    both = inside[:, local[:, 0]] & inside[:, local[:, 1]]
    dtype = model.weights.dtype
    return PairwisePolicy(
        sets=jnp.asarray(sets),
        features=jnp.asarray(np.concatenate([inside, both], axis=1), dtype),
        weights=jnp.concatenate([model.weights, model.pair_weights]),
        temperature=_checks.real_scalar("temperature", temperature, dtype, 0.0, strict=True),
    )
