"""What the fits need of a task's log, gathered once: row weights, use frequencies, feature sums,
groups of equal tools.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._sizes import padded
from jaxsac.control.data.families import Split
from jaxsac.control.data.task import Task

_ROW_MULTIPLE = 512


def row_capacity(records: int) -> int:
    """Records are padded to a multiple of 512 or, from 8,192 on, of an eighth of the power of two
    below: a log that grows by one per cent seldom needs a new compilation.
    """
    multiple = max(_ROW_MULTIPLE, 1 << max(records.bit_length() - 4, 0))
    return padded(records, _ROW_MULTIPLE, 1.0, multiple)


class Digest(NamedTuple):
    """A task's log summarised; `used` are the U tools that occur, in ascending order.

    With availability `used` are the tools that any record offers, and each is a group of its own.
    Groups share a frequency, in descending order; the last one holds the unused tools.
    """

    task: Task
    contexts: jax.Array  # [N, q]: the T contexts, then zeros up to `row_capacity(T)`
    row_weights: jax.Array  # [N]: w_t = c_t / T, Σ c_t = T, then zeros
    prior_weight: float  # w_0 = smoothing / T
    used: np.ndarray  # int32 [U]
    entry_tool: np.ndarray  # int [E]: position in `used` of each use, ascending
    entry_record: np.ndarray  # int [E]
    frequency: np.ndarray  # [U]: weighted share of records that use the tool
    feature_sums: np.ndarray  # [U, q]: G_j = Σ_{t: j ∈ a_t} w_t ψ_t
    prior_use: float  # w_0 times the prior's share of records that use a tool, the same for all
    group: np.ndarray  # int [U]: group of each used tool
    group_frequency: np.ndarray  # [G]
    group_size: np.ndarray  # [G]
    mean_size: float  # of the recorded sets, weighted
    slots: jax.Array | None  # int32 [V, N]: positions of the offered tools, padded with G − 1
    families: Split | None


def digest(task: Task, *, everyone: bool = False) -> Digest:
    """Summarise a task's log; `everyone` lists the unused tools one by one too."""
    log, num_actions = task.log, task.num_actions
    contexts, actions = np.asarray(log.contexts), np.asarray(log.actions)
    dtype, (records, q) = contexts.dtype, contexts.shape
    weight = np.asarray(task.sample_weight, np.float64) / records
    record, slot = np.nonzero(actions >= 0)
    tool = actions[record, slot]
    order = np.argsort(tool, kind="stable")
    tool, record = tool[order], record[order]
    first = np.flatnonzero(np.diff(tool, prepend=-1))
    used = tool[first].astype(np.int32)
    entry_tool = np.repeat(np.arange(used.size), np.diff(first, append=tool.size))
    frequency, feature_sums = np.zeros(used.size), np.zeros((used.size, q))
    if used.size:
        entry_weight = weight[record]
        frequency = np.add.reduceat(entry_weight, first)
        # By columns: much faster than reduceat by rows.
        sums = [
            np.bincount(entry_tool, entry_weight * contexts[record, i], used.size) for i in range(q)
        ]
        feature_sums = np.stack(sums, axis=1)
    listed, slots = used, None
    lists = None if log.available is None else np.asarray(log.available)
    if everyone:
        listed = np.arange(num_actions, dtype=np.int32)
    elif lists is not None:
        listed = np.unique(lists[lists >= 0]).astype(np.int32)
    if lists is not None:
        slots = np.where(lists >= 0, np.searchsorted(listed, lists), listed.size)
    if listed.size != used.size:
        place = np.searchsorted(listed, used)
        frequency = _spread(frequency, place, listed.size)
        feature_sums = _spread(feature_sums, place, listed.size)
        used, entry_tool = listed, place[entry_tool]
    if slots is None:
        # Frequencies that differ by rounding alone are one group.
        values, group, sizes = np.unique(
            -np.round(frequency, 14), return_inverse=True, return_counts=True
        )
        group, group_frequency = group.reshape(-1), np.append(-values, 0.0)
    else:
        group, sizes = np.arange(used.size), np.ones(used.size)
        group_frequency = np.append(frequency, 0.0)
    mean_size, budget = float(frequency.sum()), task.budget
    prior_size = min(max(mean_size, 0.5), budget - 0.5)
    rows = row_capacity(records)
    padded_contexts = np.zeros((rows, q), dtype)
    padded_contexts[:records] = contexts
    row_weights = np.zeros(rows)
    row_weights[:records] = weight
    if slots is not None:
        slots = np.concatenate([slots, np.full((rows - records, slots.shape[1]), used.size)]).T
    prior_weight = task.prior_records / records
    return Digest(
        task=task,
        contexts=jnp.asarray(padded_contexts),
        row_weights=jnp.asarray(row_weights, dtype),
        prior_weight=prior_weight,
        used=used,
        entry_tool=entry_tool,
        entry_record=record,
        frequency=frequency,
        feature_sums=feature_sums,
        prior_use=prior_weight * prior_size / num_actions,
        group=group,
        group_frequency=group_frequency,
        group_size=np.append(sizes, num_actions - used.size).astype(np.float64),
        mean_size=mean_size,
        slots=None if slots is None else jnp.asarray(slots, jnp.int32),
        families=None if task.families is None else task.families.of(used),
    )


def _spread(values: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros((size, *values.shape[1:]))
    out[place] = values
    return out
