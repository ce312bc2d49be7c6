"""What the imitation likelihood needs of a log, gathered once: row weights, use frequencies, feature sums, groups of equal tools."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.control.log import Log

ROW_MULTIPLE = 512


class Digest(NamedTuple):
    """A log summarised for the likelihood; `used` are the U tools that occur, in ascending order, row 0 is the prior record.

    The prior record has no context (zeros), weight `smoothing` and every tool in it at the same small share: the conjugate prior of the intercepts.
    """

    contexts: jax.Array  # [N, q]: row 0 zeros (prior record), then the T contexts, then zeros up to a multiple of ROW_MULTIPLE
    row_weights: jax.Array  # [N]: smoothing / T, then c_t / T with sum c_t = T, then zeros
    used: np.ndarray  # int32 [U]
    entry_tool: np.ndarray  # int [E]: position in `used` of each use, sorted
    entry_record: np.ndarray  # int [E]
    frequency: np.ndarray  # [U]: weighted share of records that use the tool
    feature_sums: np.ndarray  # [U, q]: (1/T) sum_{t: j in a_t} c_t psi_t
    prior_use: float  # smoothing / T * (uses of one tool in the prior record)
    group: (
        np.ndarray
    )  # int [U]: group of each used tool; groups share a frequency, in descending order; the last one holds the unused tools
    group_frequency: np.ndarray  # [G]
    group_size: np.ndarray  # [G]
    num_actions: int
    num_records: int
    mean_size: float


def digest(log: Log, record_weights: np.ndarray, num_actions: int, budget: int, smoothing: float) -> Digest:
    """Summarise a checked log; record_weights [T] have mean 1."""
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
    lengths = np.diff(first, append=tool.size)
    entry_tool = np.repeat(np.arange(used.size), lengths)
    weight = record_weights[record] / records
    if used.size:
        frequency = np.add.reduceat(weight, first)
        feature_sums = np.add.reduceat(weight[:, None] * contexts[record].astype(np.float64), first, axis=0)
    else:
        frequency, feature_sums = np.zeros(0), np.zeros((0, q))
    # Frequencies that differ by rounding alone are one group.
    rounded = np.round(frequency, 14)
    values, inverse, sizes = np.unique(-rounded, return_inverse=True, return_counts=True)
    group_frequency = np.append(-values, 0.0)
    group_size = np.append(sizes, num_actions - used.size).astype(np.float64)
    mean_size = float(frequency.sum())
    reach = min(budget, num_actions)
    prior_size = min(max(mean_size, 0.5), reach - 0.5) if reach > 0 else 0.0
    rows = -(-(records + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    padded = np.zeros((rows, q), dtype)
    padded[1 : records + 1] = contexts
    row_weights = np.zeros(rows)
    row_weights[0] = smoothing / records
    row_weights[1 : records + 1] = record_weights / records
    return Digest(
        contexts=jnp.asarray(padded),
        row_weights=jnp.asarray(row_weights, dtype),
        used=used,
        entry_tool=entry_tool,
        entry_record=record,
        frequency=frequency,
        feature_sums=feature_sums,
        prior_use=smoothing / records * prior_size / num_actions,
        group=inverse.reshape(-1),
        group_frequency=group_frequency,
        group_size=group_size,
        num_actions=num_actions,
        num_records=records,
        mean_size=mean_size,
    )
