"""The logged data, checked on the host and summarised once: who was used how often, and in which
contexts.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import _checks

Array = Any  # numpy or jax


class Log(NamedTuple):
    """Logged decisions: T records, each a context, the set of tools used in it, and how well it
    went.

    contexts [T, q] features psi_t; actions int32 [T, W] the tools used, padded with -1 (a record is
    a set: order and repetitions carry nothing); utilities [T], or None where no objective needs
    them; propensities [T] in (0, 1], the probability with which the logged set was chosen;
    available the tools that could be chosen in each record, as booleans [T, M] or as int32 lists
    [T, V] padded with -1 (None: all, always).
    """

    contexts: Array
    actions: Array
    utilities: Array | None = None
    propensities: Array | None = None
    available: Array | None = None


def checked(log: Log, num_actions: int, budget: int) -> Log:
    """`log` as numpy arrays with repeated tools dropped, or a ValueError that names the field, the
    records and what to do.
    """
    _checks.require(
        _checks.is_concrete(tuple(log)),
        "log must hold concrete arrays: fit works on the host, call it outside jit and vmap.",
    )
    contexts = np.asarray(log.contexts)
    if not np.issubdtype(contexts.dtype, np.floating):
        contexts = contexts.astype(np.float64)
    contexts = contexts.astype(
        jax.dtypes.canonicalize_dtype(contexts.dtype)
    )  # float32 where x64 is off, as everywhere in jax
    _checks.require(
        contexts.ndim == 2, f"log.contexts must have shape [T, q], got {list(contexts.shape)}."
    )
    records = contexts.shape[0]
    _checks.require(
        records > 0 and contexts.shape[1] > 0,
        f"log is empty (contexts {list(contexts.shape)}): there is nothing to learn from.",
    )
    _require_finite("contexts", contexts)
    actions = np.asarray(log.actions)
    _checks.require(
        np.issubdtype(actions.dtype, np.integer),
        f"log.actions must hold integers, got {actions.dtype}.",
    )
    _checks.require(
        actions.ndim == 2 and actions.shape[0] == records,
        f"log.actions must have shape [{records}, any], got {list(actions.shape)}.",
    )
    bad = np.flatnonzero(((actions < -1) | (actions >= num_actions)).any(1))
    _checks.require(
        bad.size == 0,
        f"log.actions must lie in 0..{num_actions - 1} (or be the padding -1): "
        f"{bad.size} records do not (first: {bad[:1]}); check num_actions.",
    )
    actions = np.sort(actions.astype(np.int32), axis=1)
    repeated = np.zeros(actions.shape, bool)
    repeated[:, 1:] = actions[:, 1:] == actions[:, :-1]
    actions = np.where(repeated, -1, actions)
    longer = np.flatnonzero((actions >= 0).sum(1) > budget)
    _checks.require(
        longer.size == 0,
        f"{longer.size} of {records} records use more than budget={budget} tools (first: record {longer[0] if longer.size else 0}): "
        "raise the budget, or drop them beforehand.",
    )
    utilities = _vector("utilities", log.utilities, records)
    propensities = _vector("propensities", log.propensities, records)
    if propensities is not None:
        bad = np.flatnonzero(~((propensities > 0) & (propensities <= 1)))
        _checks.require(
            bad.size == 0,
            f"log.propensities must lie in (0, 1]: {bad.size} do not (first: record {bad[:1]}).",
        )
    available = (
        None
        if log.available is None
        else _available_lists(np.asarray(log.available), actions, num_actions)
    )
    return Log(contexts, actions, utilities, propensities, available)


def _available_lists(available: np.ndarray, actions: np.ndarray, num_actions: int) -> np.ndarray:
    """Availability as sorted int32 lists [T, V] padded with -1."""
    records = actions.shape[0]
    _checks.require(
        available.ndim == 2 and available.shape[0] == records,
        f"log.available must have shape [{records}, any], got {list(available.shape)}.",
    )
    if available.dtype == bool:
        _checks.require(
            available.shape[1] == num_actions,
            f"boolean log.available must have shape [{records}, {num_actions}], got {list(available.shape)}.",
        )
        width = max(int(available.sum(1).max()), 1)
        lists = np.where(available, np.arange(num_actions, dtype=np.int32), np.int32(num_actions))
        lists = np.sort(lists, axis=1)[:, :width]
        lists = np.where(lists == num_actions, -1, lists).astype(np.int32)
    else:
        _checks.require(
            np.issubdtype(available.dtype, np.integer),
            f"log.available must be boolean or integer, got {available.dtype}.",
        )
        bad = np.flatnonzero(((available < -1) | (available >= num_actions)).any(1))
        _checks.require(
            bad.size == 0,
            f"log.available must lie in 0..{num_actions - 1} or be -1: {bad.size} records do not (first: {bad[:1]}).",
        )
        lists = np.sort(np.where(available < 0, num_actions, available).astype(np.int32), axis=1)
        lists[:, 1:] = np.where(lists[:, 1:] == lists[:, :-1], num_actions, lists[:, 1:])
        lists = np.sort(lists, axis=1)
        lists = np.where(lists == num_actions, -1, lists).astype(np.int32)
    # A chosen tool must be among the available ones: compare record * M + tool codes.
    base = np.arange(records, dtype=np.int64)[:, None] * (num_actions + 1)
    offered = np.unique((base + lists)[lists >= 0])
    chosen = (base + actions)[actions >= 0]
    missing = ~np.isin(chosen, offered, assume_unique=False)
    if missing.any():
        rows = np.unique(chosen[missing] // (num_actions + 1))
        raise ValueError(
            f"{rows.size} records use a tool that log.available does not offer them (first: record {rows[0]}): mend the log."
        )
    return lists


def _vector(name: str, value: Array | None, records: int) -> np.ndarray | None:
    if value is None:
        return None
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    _checks.require(
        array.shape == (records,),
        f"log.{name} must have shape [{records}], got {list(array.shape)}.",
    )
    _require_finite(name, array)
    return array


def _require_finite(name: str, array: np.ndarray) -> None:
    finite = np.isfinite(array).reshape(array.shape[0], -1).all(1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(
            f"log.{name} holds NaN or infinite numbers in {bad.size} records (first: record {bad[0]}): mend or drop them."
        )
