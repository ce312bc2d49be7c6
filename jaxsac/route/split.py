"""From a log to what is learned from and what is judged on: the budget, the split by groups, the
catalogue of tools.
"""

import collections
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsac.route.log_file import LogError, RouteLog

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1


class Parts(NamedTuple):
    """Training, validation and test records of one log; no group is in two of them."""

    training: RouteLog
    validation: RouteLog
    test: RouteLog


def default_budget(log: RouteLog) -> int:
    """The 95th percentile of the set sizes, rounded up to a size that occurs; at least 1."""
    return max(1, int(np.quantile([*map(len, log.sets)], 0.95, method="higher")))


def within_budget(log: RouteLog, budget: int) -> RouteLog:
    """The records of at most `budget` tools. The others are dropped whole: a truncated set is not
    what was done.
    """
    return log.take([row for row, tools in enumerate(log.sets) if len(tools) <= budget])


def split(log: RouteLog) -> Parts:
    """About 70 % of the records for training, 10 % for validation, 20 % for the test, whole groups
    each.

    Groups come in the order of their names' hashes, so that the split depends on the log alone: the
    first ones make the test. Raises LogError for logs that are too small for three parts.
    """
    sizes = collections.Counter(log.groups)
    order = sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest())
    part_of, seen = {}, 0
    for group in order:
        share = seen / len(log.groups)
        held_out = "test" if share < _TEST_SHARE else "validation"
        part_of[group] = held_out if share < _TEST_SHARE + _VALIDATION_SHARE else "training"
        seen += sizes[group]
    rows = {
        part: [row for row, group in enumerate(log.groups) if part_of[group] == part]
        for part in Parts._fields
    }
    if any(not rows[part] for part in Parts._fields):
        finer = ", or finer groups" if len(order) < len(log.groups) else ""
        raise LogError(
            f"{len(log.groups)} records in {len(order)} groups are too few for training, validation"
            f" and test: give more records{finer}."
        )
    return Parts(*(log.take(rows[part]) for part in Parts._fields))


def with_choice(log: RouteLog) -> RouteLog:
    """The records that had a choice: what was shown to the others is what they used, which says
    nothing about tools.
    """
    if log.shown is None:
        return log
    pairs = zip(log.shown, log.sets, strict=True)
    chose = [shown is None or not set(shown) <= set(used) for shown, used in pairs]
    if not any(chose):
        raise LogError(
            "every record was shown only the tools that it used: give all that was offered in"
            ' "shown", or leave it out.'
        )
    return log.take(np.flatnonzero(chose))


def nested_subsets(size: int, wanted: Sequence[int], seed: int) -> list[np.ndarray]:
    """Row numbers of nested random training sets, the whole one last: the sizes in `wanted` that
    are clearly smaller than `size`.

    Where none is (a small log), a quarter and a half; with `wanted` empty the whole alone.
    """
    sizes = [number for number in sorted(wanted) if number < 0.8 * size] or [
        size // 4,
        size // 2,
    ] * bool(wanted)
    order = np.random.default_rng(seed).permutation(size)
    return [np.sort(order[:number]) for number in sizes if number >= 10] + [np.arange(size)]


def catalogue(log: RouteLog) -> list[str]:
    """The tools that the log uses, by name."""
    return sorted({name for tools in log.sets for name in tools})


def action_table(log: RouteLog, names: Sequence[str], budget: int) -> np.ndarray:
    """The sets as int32 [T, budget] positions in `names`, padded with -1; tools that are not in
    `names` are left out.
    """
    position = {name: number for number, name in enumerate(names)}
    table = np.full((len(log.sets), budget), -1, np.int32)
    for row, tools in enumerate(log.sets):
        known = [position[name] for name in tools if name in position]
        table[row, : len(known)] = known
    return table


def shown_table(log: RouteLog, names: Sequence[str]) -> np.ndarray | None:
    """Which of `names` each record could choose, bool [T, M]; None where no record says."""
    if log.shown is None:
        return None
    position = {name: number for number, name in enumerate(names)}
    table = np.ones((len(log.sets), len(names)), bool)
    for row, shown in enumerate(log.shown):
        if shown is not None:
            table[row] = False
            table[row, [position[name] for name in shown if name in position]] = True
    return table
