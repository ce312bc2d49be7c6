"""Tools that help or hinder each other: pairwise effects with strong heredity, and exact policies
over small supports.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, group_lasso
from jaxsac._arguments import arguments, integer, real, record, size, tolerance
from jaxsac._iterate import Certificate
from jaxsac._rounds import Progress, rounds
from jaxsac._sizes import padded
from jaxsac.control.data.digest import digest
from jaxsac.control.data.task import Task, require_utility
from jaxsac.control.fits.fit import as_arrays
from jaxsac.prox import Groups
from jaxsac.solution import Hashable, Solution, Status, register

_CONTEXT = real("q")
_PAIR_WEIGHT = math.sqrt(3)
_CAPACITY = 16  # the design has room for a multiple of so many pairs
_ROOM = 32  # pairs that enter at a time
_MOST_SETS = 100_000
_SLACK = 1e-6  # of a pair's optimality condition
_TIGHTER = 0.1  # of the inner tolerance, where all is entered but for the certificate


@register
class Interactions(NamedTuple):
    """u = constant + Σ_{j ∈ a} ⟨θ_j, ψ⟩ + Σ_{i < j ∈ a} ⟨β_ij, ψ⟩."""

    tools: jax.Array  # int32 [k], ascending
    coef: jax.Array  # θ [k, q]
    pairs: jax.Array  # int32 [P, 2]: both in tools
    pair_coef: jax.Array  # β [P, q]
    constant: jax.Array  # [], in units of utility


@arguments(
    on_host=True,
    task=record(Task),
    lam=real(above=0, below=np.inf),
    # below it unseen pairs would have to be looked at
    pair_weight=real(low=math.sqrt(2), below=np.inf),
    tol=real(low=0),
    max_steps=size(),
)
def fit_interactions(
    task: Task,
    *,
    lam: Any,
    pair_weight: float = _PAIR_WEIGHT,
    tol: float | None = None,
    max_steps: int = 50,
) -> Solution:
    """Least squares of the utility on tools and on pairs of tools used together, where a pair
    brings its two tools along.

        minimise  (1/2T) Σ_t (u_t − z_t)² + lam Σ_j ‖θ_j⁰‖ + lam w Σ_{i<j} ‖(θ_i^ij, θ_j^ij, β_ij)‖
        z_t = constant + Σ_{j ∈ a_t} ⟨θ_j, ψ_t⟩ + Σ_{i<j ∈ a_t} ⟨β_ij, ψ_t⟩,
        θ_j = θ_j⁰ + Σ_i θ_j^ij

    Overlapping blocks in latent form: β_ij ≠ 0 implies that its block is not zero, so that θ_i and
    θ_j are not either (strong heredity, except on a set of measure zero).

    * `task`: of objective "utility", with its constant and without families.
    * `lam` > 0; `pair_weight` w ≥ √2: then a pair that no record uses together meets its optimality
      condition by itself, and only observed pairs (at most T B² / 2) are ever looked at.
    * `tol` ≥ 0, relative to stats["scale"]; None is 1e-6 in float64, 1e-4 in float32. `max_steps`
      counts rounds: in each up to 32 pairs enter, those of the largest gradients.

    Memory T q (tools + 3 pairs entered): for up to some thousands of used tools. Runs on the host.

    Returns: a `Solution` with `Interactions`; stats lam, objective, error (the duality gap over all
    tools and all observed pairs; also as gap), rounding, scale, num_steps, reason, largest_pair
    (largest gradient norm of a block outside over lam w), num_candidates (observed pairs).

    Raises: ValueError for another task, lam ≤ 0, w < √2.

    Source: the interaction extension of arXiv 2601.08271; latent overlapping blocks of Jacob,
    Obozinski & Vert 2009, Lim & Hastie 2015.
    """
    require_utility(task, "fit_interactions")
    lam = float(lam)
    paired = _Paired.of(task, lam, float(pair_weight))
    tol = float(tolerance(tol, paired.utilities.dtype))

    def advance(at: _At, _: Progress) -> _At:
        violators = np.flatnonzero(at.norms > 1 + _SLACK)
        if not violators.size:  # nothing is missing: only the certificate's own accuracy
            return paired.solved(at.entered, _TIGHTER * at.tol)
        worst = violators[np.argsort(-at.norms[violators], kind="stable")[:_ROOM]]
        return paired.solved(np.append(at.entered, worst), at.tol)

    start = paired.solved(np.zeros(0, int), tol)
    outcome = rounds(
        advance,
        paired.certify,
        start,
        tol=tol,
        max_steps=max_steps,
        patience=1,
        useful=lambda at, _: int(at.solution.status) == Status.CONVERGED,
    )
    end: _At = outcome.state
    stats = {
        "lam": lam,
        "objective": end.solution.stats["objective"],
        **outcome.stats,
        "gap": outcome.certificate.error,
        "largest_pair": end.norms.max(initial=0.0),
        "num_candidates": len(paired.pairs),
    }
    status = jnp.int32(outcome.status)
    return Solution(paired.value(end), status, as_arrays(stats, paired.utilities.dtype), None)


class _At(NamedTuple):
    entered: np.ndarray  # int [E]: positions in the observed pairs
    tol: float  # of the solution
    solution: Solution  # of the group lasso on all tools and these pairs
    residual: np.ndarray  # [T]
    norms: np.ndarray  # [P]: gradient norms of the pairs outside over lam w, 0 of those entered
    largest: float  # of all blocks over their bound


class _Paired(NamedTuple):
    """The problem with tools numbered by use and pairs by place in `pairs`."""

    tools: np.ndarray  # int32 [U]
    used: np.ndarray  # bool [T, U]
    contexts: np.ndarray  # [T, q]
    utilities: jax.Array  # [T]
    single: np.ndarray  # [T, U q]: the design of the tools
    pairs: np.ndarray  # int [P, 2]: those that a record uses together
    pair_of: np.ndarray  # int [E]: of each use of a pair
    pair_record: np.ndarray  # int [E]
    lam: float
    pair_weight: float

    @classmethod
    def of(cls, task: Task, lam: float, pair_weight: float) -> "_Paired":
        data, contexts = digest(task), np.asarray(task.log.contexts)
        used = np.zeros((task.num_records, data.used.size), bool)
        used[data.entry_record, data.entry_tool] = True
        single = (used[:, :, None] * contexts[:, None, :]).reshape(task.num_records, -1)
        utilities = jnp.asarray(np.asarray(task.log.utilities), contexts.dtype)
        return cls(data.used, used, contexts, utilities, single, *_observed(used), lam, pair_weight)

    def solved(self, entered: np.ndarray, tol: float) -> _At:
        records, q = self.contexts.shape
        dtype = self.utilities.dtype
        blocks = [self.single]
        for i, j in self.pairs[entered]:
            both = (self.used[:, i] & self.used[:, j])[:, None] * self.contexts
            own = (self.single[:, k * q : (k + 1) * q] for k in (i, j))
            blocks.append(np.concatenate([*own, both], axis=1))
        room = padded(entered.size, 0, 1.0, _CAPACITY)  # empty blocks keep the shapes few
        blocks.append(np.zeros((records, 3 * q * (room - entered.size))))
        design = jnp.asarray(np.concatenate(blocks, axis=1), dtype)
        weights = np.append(np.ones(self.tools.size), np.full(room, self.pair_weight))
        groups = Groups.from_sizes([q] * self.tools.size + [3 * q] * room)
        solution = group_lasso.solve(
            design,
            self.utilities,
            groups,
            self.lam,
            weights=jnp.asarray(weights, dtype),
            intercept=True,
            tol=tol,
        )
        predictions = jnp.matmul(design, solution.value.coef, precision="highest")
        predictions = predictions + solution.value.intercept
        residual = np.asarray(self.utilities - predictions, np.float64)
        own = (residual @ self.single / records).reshape(-1, q)
        pulled = residual[self.pair_record, None] * self.contexts[self.pair_record] / records
        joint = [np.bincount(self.pair_of, column, len(self.pairs)) for column in pulled.T]
        squares = (own[self.pairs] ** 2).sum((1, 2)) + np.sum(np.square(joint), axis=0)
        norms = np.sqrt(squares) / (self.lam * self.pair_weight)
        alone = np.sqrt((own**2).sum(1)).max(initial=0.0) / self.lam
        largest = float(max(norms.max(initial=0.0), alone))
        norms[entered] = 0
        return _At(entered, tol, solution, residual, norms, largest)

    def certify(self, at: _At) -> Certificate:
        """The gap to the dual at the residuals, scaled until every block's gradient is within its
        bound: D(s) = (s ⟨u − mean u, r⟩ − s² ‖r‖² / 2) / T.
        """
        utilities = np.asarray(self.utilities, np.float64)
        r = at.residual - at.residual.mean()
        records, square = r.size, r @ r
        product = (utilities - utilities.mean()) @ r
        best = product / square if square > 0 else 0.0
        s = min(best, 1 / at.largest) if at.largest > 0 else best
        objective, stats = float(at.solution.stats["objective"]), at.solution.stats
        error = np.maximum(objective - (s * product - s**2 * square / 2) / records, 0)
        return Certificate(error, float(stats["rounding"]), float(stats["scale"]))  # pyright: ignore

    def value(self, at: _At) -> Interactions:
        q, dtype = self.contexts.shape[1], self.utilities.dtype
        coef = np.asarray(at.solution.value.coef, np.float64)
        main = coef[: self.tools.size * q].reshape(-1, q).copy()
        extra = coef[self.tools.size * q :].reshape(-1, 3, q)[: at.entered.size]
        ends = self.pairs[at.entered]
        np.add.at(main, ends, extra[:, :2])
        found = np.flatnonzero((extra[:, 2] != 0).any(1))
        alive = np.flatnonzero((main != 0).any(1))
        return Interactions(
            tools=jnp.asarray(self.tools[alive], jnp.int32),
            coef=jnp.asarray(main[alive], dtype),
            pairs=jnp.asarray(self.tools[ends[found]].reshape(-1, 2), jnp.int32),
            pair_coef=jnp.asarray(extra[found, 2].reshape(-1, q), dtype),
            constant=at.solution.value.intercept,
        )


def _observed(used: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs [P, 2] that a record uses together, ascending, and each use of one: its pair [E] and
    record [E].
    """
    uses = []
    for t, row in enumerate(used):
        members = np.flatnonzero(row)
        i, j = np.triu_indices(members.size, 1)
        uses.append(np.stack([members[i], members[j], np.full(i.size, t)]))
    first, second, record = np.concatenate(uses, axis=1)
    codes, pair = np.unique(first * used.shape[1] + second, return_inverse=True)
    return np.stack(np.divmod(codes, used.shape[1]), axis=1), pair.reshape(-1), record


@register
@arguments(
    sets=integer("N", "B"), features=real("N", "P"), coef=real("P", "q"), temperature=real(above=0)
)
class PairwisePolicy(Hashable):
    """π(a | ψ) ∝ exp((Σ_{j ∈ a} ⟨θ_j, ψ⟩ + Σ_{i<j ∈ a} ⟨β_ij, ψ⟩) / temperature) over sets of at
    most B of k tools, by listing them all; a pytree.
    """

    sets: jax.Array  # int32 [N, B], padded with -1: names of tools
    features: jax.Array  # [N, k + P], 0 or 1: the tools and pairs of each set
    coef: jax.Array  # θ and β [k + P, q], in units of utility
    temperature: jax.Array  # [], in units of utility

    def log_probs(self, context: Any) -> jax.Array:
        """log π of every set, [N], for a context [q]."""
        context = _CONTEXT.take("context", context, self.coef.dtype, q=self.coef.shape[1])
        multiply = functools.partial(jnp.matmul, precision="highest")
        scores = multiply(self.features, multiply(self.coef, context))
        return jax.nn.log_softmax(scores / self.temperature)

    def act(self, context: Any) -> jax.Array:
        """The most probable set, int32 [B] padded with -1."""
        return self.sets[jnp.argmax(self.log_probs(context))]

    def sample(self, key: jax.Array, context: Any) -> jax.Array:
        """An exact draw, int32 [B] padded with -1. The key is consumed."""
        return self.sets[jax.random.categorical(key, self.log_probs(context))]


@arguments(model=record(Interactions), budget=size(1), temperature=real(above=0))
def pairwise_policy(model: Interactions, *, budget: int, temperature: Any = 1.0) -> PairwisePolicy:
    """The exact policy of a model with interactions over its own k tools, in sets of at most
    `budget`: with pairs, the partition function has no product form, so all C(k, ≤ B) sets are
    listed.

    * `temperature` > 0, in units of utility.

    Raises: ValueError above 100,000 sets (keep fewer tools).
    """
    tools = np.asarray(model.tools)
    budget = min(budget, tools.size)
    count = sum(math.comb(tools.size, r) for r in range(budget + 1))
    _checks.require(
        count <= _MOST_SETS,
        f"{tools.size} tools have {count:,} sets of at most {budget}: keep fewer tools or lower the"
        " budget.",
    )
    inside = np.zeros((count, tools.size), bool)
    sets = np.full((count, budget), -1, np.int32)
    sizes = (itertools.combinations(range(tools.size), r) for r in range(budget + 1))
    for row, chosen in enumerate(itertools.chain.from_iterable(sizes)):
        inside[row, list(chosen)] = True
        sets[row, : len(chosen)] = tools[list(chosen)]
    local = np.searchsorted(tools, np.asarray(model.pairs))
    both = inside[:, local[:, 0]] & inside[:, local[:, 1]]
    dtype = model.coef.dtype
    return PairwisePolicy(
        sets=jnp.asarray(sets),
        features=jnp.asarray(np.concatenate([inside, both], axis=1), dtype),
        coef=jnp.concatenate([model.coef, model.pair_coef]),
        temperature=jnp.asarray(temperature, dtype),
    )
