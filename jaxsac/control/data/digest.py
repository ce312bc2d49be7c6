"""What the imitation likelihood needs of a log, gathered once: row weights, use frequencies,
feature sums, groups of equal tools.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.control.data.log import Log

ROW_MULTIPLE = 512


def row_capacity(records: int) -> int:
    """Records are padded to a multiple of 512 or, from 8,192 on, of an eighth of the power of two
    below: a log that grows by one per cent seldom needs a new compilation.
    """
    step = max(ROW_MULTIPLE, 1 << max(records.bit_length() - 4, 0))
    return -(-records // step) * step


class Digest(NamedTuple):
    """A log summarised for the likelihood; `used` are the U tools that occur, in ascending order.

    With availability `used` are the tools that any record offers, and each is a group of its own.
    """

    contexts: jax.Array  # [N, q]: the T contexts, then zeros up to `row_capacity(T)`
    row_weights: jax.Array  # [N]: c_t / T with sum c_t = T, then zeros
    prior_weight: float  # smoothing / T
    used: np.ndarray  # int32 [U]
    entry_tool: np.ndarray  # int [E]: position in `used` of each use, ascending
    entry_record: np.ndarray  # int [E]
    frequency: np.ndarray  # [U]: weighted share of records that use the tool
    feature_sums: np.ndarray  # [U, q]: (1/T) sum_{t: j in a_t} c_t psi_t
    prior_use: float  # prior_weight times the prior's share of records that use a tool, the same for all tools
    group: np.ndarray  # int [U]: group of each used tool; groups share a frequency, in descending order; the last one holds the unused tools
    group_frequency: np.ndarray  # [G]
    group_size: np.ndarray  # [G]
    num_actions: int
    num_records: int
    mean_size: float
    slots: (
        jax.Array | None
    )  # int32 [V, N]: positions in `used` of the tools that a record offers, padded with G - 1


def digest(
    log: Log,
    record_weights: np.ndarray,
    num_actions: int,
    budget: int,
    smoothing: float,
    *,
    everyone: bool = False,
) -> Digest:
    """Summarise a checked log; record_weights [T] have mean 1. `everyone` lists the unused tools
    one by one too.
    """
    contexts = np.asarray(log.contexts)
    dtype = contexts.dtype
    records, q = contexts.shape
    actions = np.asarray(log.actions)
    record, slot = np.nonzero(actions >= 0)
    tool = actions[record, slot]
    order = np.argsort(tool, kind="stable")
    tool, record = tool[order], record[order]
    first = np.flatnonzero(np.diff(tool, prepend=-1))
    used = tool[first].astype(np.int32)
    entry_tool = np.repeat(np.arange(used.size), np.diff(first, append=tool.size))
    weight = record_weights[record] / records
    frequency, feature_sums = np.zeros(used.size), np.zeros((used.size, q))
    if used.size:
        frequency = np.add.reduceat(weight, first)
        columns = [
            np.bincount(entry_tool, weight * contexts[record, i], used.size) for i in range(q)
        ]  # much faster than reduceat by rows
        feature_sums = np.stack(columns, axis=1)
    slots = None
    if everyone:
        frequency, feature_sums = (
            _spread(frequency, used, num_actions),
            _spread(feature_sums, used, num_actions),
        )
        entry_tool, used = used[entry_tool], np.arange(num_actions, dtype=np.int32)
    if log.available is None:
        # Frequencies that differ by rounding alone are one group.
        values, group, sizes = np.unique(
            -np.round(frequency, 14), return_inverse=True, return_counts=True
        )
        group_frequency, group = np.append(-values, 0.0), group.reshape(-1)
    else:
        lists = np.asarray(log.available)
        offered = np.unique(lists[lists >= 0]).astype(np.int32)
        place = np.searchsorted(offered, used)
        frequency, feature_sums = (
            _spread(frequency, place, offered.size),
            _spread(feature_sums, place, offered.size),
        )
        used, entry_tool = offered, place[entry_tool]
        group, sizes, group_frequency = (
            np.arange(used.size),
            np.ones(used.size),
            np.append(frequency, 0.0),
        )
        slots = np.where(lists >= 0, np.searchsorted(offered, lists), used.size)
    group_size = np.append(sizes, num_actions - used.size).astype(np.float64)
    mean_size = float(frequency.sum())
    reach = min(budget, num_actions)
    prior_size = min(max(mean_size, 0.5), reach - 0.5) if reach > 0 else 0.0
    rows = row_capacity(records)
    padded = np.zeros((rows, q), dtype)
    padded[:records] = contexts
    row_weights = np.zeros(rows)
    row_weights[:records] = record_weights / records
    if slots is not None:
        slots = np.concatenate([slots, np.full((rows - records, slots.shape[1]), used.size)]).T
    return Digest(
        contexts=jnp.asarray(padded),
        row_weights=jnp.asarray(row_weights, dtype),
        prior_weight=smoothing / records,
        used=used,
        entry_tool=entry_tool,
        entry_record=record,
        frequency=frequency,
        feature_sums=feature_sums,
        prior_use=smoothing / records * prior_size / num_actions,
        group=group,
        group_frequency=group_frequency,
        group_size=group_size,
        num_actions=num_actions,
        num_records=records,
        mean_size=mean_size,
        slots=None if slots is None else jnp.asarray(slots, jnp.int32),
    )


def _spread(values: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros((size, *values.shape[1:]))
    out[place] = values
    return out
