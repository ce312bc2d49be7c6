"""How much to penalise: the multiplier simulation and the rate of the theory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import gibbs
from jaxsac.control.data.digest import Digest
from jaxsac.control.imitation.likelihood import Evaluation
from jaxsac.control.imitation.working import null_point, to_host, unpad_groups

_CONFIDENCE = 0.95
MARGIN = 1.1
_NUM_DRAWS = 500
_BLOCK = 64  # draws at a time
_MEMORY = 1_000_000  # numbers in a batch of tools


def simulated(key: jax.Array, data: Digest) -> float:
    """1.1 × the 95 % quantile of max_j ‖(1/T) Σ_t ε_t (g_tj − mean g_j)‖ over 500 draws, g_tj = c_t
    (1[j ∈ a_t] − μ_tj) ψ_t.

    The pilot is the null model: intercepts fitted, no coefficients. Unless records offer
    their own tools μ_tj does not depend on the record: unused tools share one vector, the used ones
    cost their uses, and the T × M score matrix is never formed. ε ~ N(0, 1). The key is consumed.
    """
    found = null_point(data)[1]
    weights = to_host(data.row_weights)[: data.task.num_records] * data.task.num_records
    rates, unused_rate = np.zeros(data.used.size), 0.0
    if data.slots is None:
        entries = Entries(data.entry_tool, data.entry_record, weights[data.entry_record])
        rates, unused_rate = _null_rates(data, found)
    else:
        entries = _offered_scores(data, found, weights)
    return multiplier_quantile(key, data, entries, weights, rates, unused_rate)


class Entries(NamedTuple):
    """A sparse table by tool: the score of tool[e] in record[e] is value[e] ψ."""

    tool: np.ndarray  # int [E], ascending
    record: np.ndarray  # int [E]
    value: np.ndarray  # [E]


def multiplier_quantile(
    key: jax.Array,
    data: Digest,
    entries: Entries,
    factor: np.ndarray,
    rates: np.ndarray,
    unused_rate: float,
) -> float:
    """The quantile for the scores of `entries` minus rate_j factor_t ψ_t, centred. Tools with
    equally many entries are one batch of products. With families the largest norm is their dual
    norm of all tools' norms.
    """
    records = data.task.num_records
    contexts, families = to_host(data.contexts)[:records] / records, data.families
    noise = np.asarray(jax.random.normal(key, (_NUM_DRAWS, records), np.float32), np.float64)
    noise -= noise.mean(1, keepdims=True)  # centring the scores is centring the noise
    common = (noise * factor) @ contexts  # [R, q]
    beside = unused_rate * np.linalg.norm(common, axis=1)
    largest = beside**2
    everyone = None if families is None else np.zeros((_NUM_DRAWS, data.used.size))
    tools, starts, counts = np.unique(entries.tool, return_index=True, return_counts=True)
    ranking = np.argsort(counts, kind="stable")
    values, first = np.unique(counts[ranking], return_index=True)
    for count, equal in zip(values, np.split(ranking, first[1:])[: values.size], strict=True):
        size = max(1, _MEMORY // (count * (contexts.shape[1] + _BLOCK)))
        for part in np.split(equal, np.arange(size, equal.size, size)):
            where = starts[part][:, None] + np.arange(count)  # [m, count]
            scores = contexts[entries.record[where]] * entries.value[where][:, :, None]
            for low in range(0, _NUM_DRAWS, _BLOCK):
                draws = slice(low, low + _BLOCK)
                squares = _squares(
                    noise[draws], common[draws], entries.record[where], scores, rates[tools[part]]
                )
                largest[draws] = np.maximum(largest[draws], squares.max(1))
                if everyone is not None:
                    everyone[draws, tools[part]] = np.sqrt(np.maximum(squares, 0))
    if families is not None and everyone is not None:
        largest = families.dual_norm(everyone, beside) ** 2
    return MARGIN * float(np.sqrt(np.quantile(largest, _CONFIDENCE)))


def _squares(noise, common, records, scores, rate):
    """‖Σ_t ε_t scores_t − rate common‖² of each of these tools, [R, m]."""
    if records.shape[1] == 1:  # expanded, so that no [R, m, q] array appears
        score = scores[:, 0]
        e = noise[:, records[:, 0]]
        return (
            e**2 * (score**2).sum(1)
            - 2 * e * rate * (common @ score.T)
            + rate**2 * (common**2).sum(1)[:, None]
        )
    own = np.matmul(noise[:, records].transpose(1, 0, 2), scores) - rate[:, None, None] * common
    return np.einsum("mrq,mrq->rm", own, own)


def theory(key: jax.Array, data: Digest) -> float:
    """σ_g² = max_j λ_max((1/T) Σ_t c_t² μ_tj (1 − μ_tj) ψ_t ψ_t') at the null model, then
    `theory_rate`.
    """
    records, found = data.task.num_records, null_point(data)[1]
    contexts = to_host(data.contexts)[:records]
    weights = to_host(data.row_weights)[:records] * records
    if data.slots is None:
        rate = np.append(*_null_rates(data, found))
        moment = (contexts * (weights**2)[:, None]).T @ contexts / records
        variance = float(np.max(rate * (1 - rate)) * np.linalg.eigvalsh(moment)[-1])
    else:
        tool, record, rate = _offers(data, found)
        scale = weights[record] * np.sqrt(rate * (1 - rate))
        variance = largest_moment(tool, contexts[record] * scale[:, None]) / records
    return theory_rate(variance, data)


def largest_moment(tool: np.ndarray, rows: np.ndarray) -> float:
    """max_j λ_max(Σ over the rows of tool j of row row'); `tool` ascending. The trace bounds the
    eigenvalue: most tools are skipped.
    """
    if tool.size == 0:
        return 0.0
    starts = np.flatnonzero(np.diff(tool, prepend=-1))
    ends = np.append(starts[1:], tool.size)
    traces = np.add.reduceat((rows**2).sum(1), starts)
    largest = 0.0
    for i in np.argsort(-traces, kind="stable"):
        if traces[i] <= largest:
            break
        block = rows[starts[i] : ends[i]]
        gram = block @ block.T if block.shape[0] < block.shape[1] else block.T @ block
        largest = max(largest, float(np.linalg.eigvalsh(gram)[-1]))
    return largest


def theory_rate(variance: float, data: Digest) -> float:
    """lam = 2 σ_g ((q / T)^½ + (2 log M / T)^½): the rate of arXiv 2601.08271, c₀ = 1."""
    records, tools = data.task.num_records, max(data.task.num_actions, 2)
    rate = np.sqrt(data.task.num_features / records) + np.sqrt(2 * np.log(tools) / records)
    return float(2 * np.sqrt(variance) * rate)


def _null_rates(data: Digest, found: Evaluation) -> tuple[np.ndarray, float]:
    """Marginals of the null model in a record: of each used tool, and of an unused one (0 where
    there is none).
    """
    size = data.group_size.size
    group_prior = 1 / (1 + np.exp(-unpad_groups(to_host(found.group_intercept), size)))
    rates = unpad_groups(to_host(found.group_use), size) - data.prior_weight * group_prior
    return rates[data.group], float(rates[-1]) if data.group_size[-1] > 0 else 0.0


def _offers(data: Digest, found: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tool, record, null marginal) of every offer, ascending in the tool."""
    slots = np.asarray(data.slots)
    marginals = to_host(_null_marginals(found.group_intercept, data.slots, data.task.budget))
    slot, record = np.nonzero(slots < data.used.size)
    tool = slots[slot, record]
    order = np.lexsort((record, tool))
    return tool[order], record[order], marginals[slot, record][order]


@functools.partial(jax.jit, static_argnames="budget")
def _null_marginals(intercepts, slots, budget: int):
    scores = jnp.where(slots < intercepts.shape[0] - 1, intercepts[slots], -jnp.inf)
    alone = jnp.zeros((budget + 1, scores.shape[1]), scores.dtype)
    return gibbs.rows.marginals(scores, alone, budget)


def _offered_scores(data: Digest, found: Evaluation, weights: np.ndarray) -> Entries:
    tool, record, rate = _offers(data, found)
    code = tool.astype(np.int64) * data.task.num_records + record
    chosen = np.searchsorted(
        code, data.entry_tool.astype(np.int64) * data.task.num_records + data.entry_record
    )
    value = -rate
    value[chosen] += 1
    return Entries(tool, record, value * weights[record])
