"""The logged data, checked on the host: numpy arrays in, numpy arrays out."""

from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks
from jaxsac._arguments import integer, real
from jaxsac._arguments.numbers import computed

Array = Any  # numpy or jax
# Of the fields; what they hold is looked at below, where the records are named.
_CONTEXTS, _SETS, _NUMBERS = real("T", "q", own=True), integer("T", "any"), real("T", own=True)


class Log(NamedTuple):
    """T logged decisions: each a context, the set of tools used in it, and how well it went."""

    contexts: Array  # [T, q]: features ψ_t, in the caller's units
    actions: Array  # int32 [T, W]: tools used, padded with -1; order and repetitions carry nothing
    utilities: Array | None = None  # [T]; None where no objective needs them
    propensities: Array | None = None  # [T] in (0, 1]: chance with which the logged set was chosen
    available: Array | None = None  # what could be chosen: bool [T, M], or int32 lists padded by -1


def checked(log: Log, num_actions: int, budget: int) -> Log:
    """`log` as numpy arrays with repeated tools dropped, or a ValueError that names the field, the
    records and what to do.
    """
    sizes: dict[str, int] = {}
    # float32 where x64 is off, as everywhere in jax
    contexts = np.asarray(_CONTEXTS.convert("log.contexts", log.contexts, sizes, computed(float)))
    records = contexts.shape[0]
    _checks.require(
        records > 0 and contexts.shape[1] > 0,
        f"log is empty (contexts {list(contexts.shape)}): there is nothing to learn from.",
    )
    _require_finite("contexts", contexts)
    actions = _within("actions", logged_sets(log), records, num_actions)
    actions = np.sort(actions, axis=1)
    repeated = np.zeros(actions.shape, bool)
    repeated[:, 1:] = actions[:, 1:] == actions[:, :-1]
    actions = np.where(repeated, -1, actions)
    longer = np.flatnonzero((actions >= 0).sum(1) > budget)
    _checks.require(
        longer.size == 0,
        f"{longer.size} of {records} records use more than budget={budget} tools"
        f" ({_first(longer)}): raise the budget, or drop them beforehand.",
    )
    utilities = _vector("utilities", log.utilities, records)
    propensities = _vector("propensities", log.propensities, records)
    if propensities is not None:
        bad = np.flatnonzero(~((propensities > 0) & (propensities <= 1)))
        _checks.require(
            bad.size == 0,
            f"log.propensities must lie in (0, 1]: {bad.size} do not ({_first(bad)}).",
        )
    available = log.available
    if available is not None:
        available = _available_lists(available, actions, num_actions)
    return Log(contexts, actions, utilities, propensities, available)


def logged_sets(log: Log) -> np.ndarray:
    """Its actions as int32 [T, W], or a ValueError."""
    return np.asarray(_SETS.take("log.actions", log.actions))


def take(log: Log, rows: Any) -> Log:
    """The records at the given positions, or of a slice."""
    return Log(*(None if field is None else np.asarray(field)[rows] for field in log))


def join(first: Log, second: Log) -> Log:
    """The records of both, in order; sets are padded to the wider of the two."""
    joined = []
    for name, a, b in zip(Log._fields, first, second, strict=True):
        _checks.require(
            (a is None) == (b is None), f"log.{name} must be given in both logs or in none."
        )
        if name == "contexts":
            _checks.require(
                np.shape(a)[1] == np.shape(b)[1],
                f"log.contexts must have {np.shape(a)[1]} features, got {np.shape(b)[1]}.",
            )
        if a is None or b is None:
            joined.append(None)
            continue
        arrays = [np.asarray(a), np.asarray(b)]
        if name in ("actions", "available") and arrays[0].dtype != bool:
            width = max(array.shape[1] for array in arrays)
            arrays = [
                np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=-1)
                for array in arrays
            ]
        joined.append(np.concatenate(arrays))
    return Log(*joined)


def offered(log: Log, num_actions: int) -> np.ndarray:
    """Which tools each record of a checked log could have chosen, bool [T, M] ([1, M] for all)."""
    if log.available is None:
        return np.ones((1, num_actions), bool)
    lists = np.asarray(log.available)
    if lists.dtype == bool:
        return lists
    table = np.zeros((lists.shape[0], num_actions + 1), bool)
    np.put_along_axis(table, np.where(lists < 0, num_actions, lists), True, axis=1)
    return table[:, :-1]


def _available_lists(available: Any, actions: np.ndarray, num_actions: int) -> np.ndarray:
    """Availability as sorted int32 lists [T, V] padded with -1."""
    records = actions.shape[0]
    _CONTEXTS.take("log.available", available, computed(float), T=records)
    available = np.asarray(available)
    if available.dtype == bool:
        _checks.require(
            available.shape == (records, num_actions),
            f"boolean log.available must have shape [{records}, {num_actions}],"
            f" got {list(available.shape)}.",
        )
        width = max(int(available.sum(1).max()), 1)
        lists = np.where(available, np.arange(num_actions, dtype=np.int32), np.int32(num_actions))
        lists = np.sort(lists, axis=1)[:, :width]
    else:
        lists = np.asarray(_SETS.take("log.available", available))
        available = _within("available", lists, records, num_actions)
        lists = np.sort(np.where(available < 0, num_actions, available), axis=1)
        lists[:, 1:] = np.where(lists[:, 1:] == lists[:, :-1], num_actions, lists[:, 1:])
        lists = np.sort(lists, axis=1)
    lists = np.where(lists == num_actions, -1, lists).astype(np.int32)
    # A chosen tool must be among the available ones: compare the codes record · (M + 1) + tool.
    base = np.arange(records, dtype=np.int64)[:, None] * (num_actions + 1)
    possible = np.unique((base + lists)[lists >= 0])
    chosen = (base + actions)[actions >= 0]
    rows = np.unique(chosen[~np.isin(chosen, possible)] // (num_actions + 1))
    _checks.require(
        rows.size == 0,
        f"{rows.size} records use a tool that log.available does not offer them ({_first(rows)}):"
        " mend the log.",
    )
    return lists


def _within(name: str, array: np.ndarray, records: int, num_actions: int) -> np.ndarray:
    _checks.require(
        array.shape[0] == records,
        f"log.{name} must have shape [{records}, any], got {list(array.shape)}.",
    )
    bad = np.flatnonzero(((array < -1) | (array >= num_actions)).any(1))
    _checks.require(
        bad.size == 0,
        f"log.{name} must lie in 0..{num_actions - 1} (or be the padding -1): "
        f"{bad.size} records do not ({_first(bad)}); check num_actions.",
    )
    return array


def _vector(name: str, value: Array | None, records: int) -> np.ndarray | None:
    if value is None:
        return None
    _NUMBERS.take(f"log.{name}", value, computed(float), T=records)
    array = np.asarray(value)  # float64 stays so on the host: a propensity may be tiny
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    _require_finite(name, array)
    return array


def _require_finite(name: str, array: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(array).reshape(array.shape[0], -1).all(1))
    _checks.require(
        bad.size == 0,
        f"log.{name} holds NaN or infinite numbers in {bad.size} records ({_first(bad)}): mend or"
        " drop them.",
    )


def _first(records: np.ndarray) -> str:
    return f"first: record {records[0]}" if records.size else ""
