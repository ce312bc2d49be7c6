"""The split, the budget, and sets as arrays."""

import collections

import numpy as np
import pytest

from jaxsac.route import split
from jaxsac.route.log_file import LogError, RouteLog


def make(sets, groups=None):
    groups = groups or [f"g{row}" for row in range(len(sets))]
    contexts = [f"text {row}" for row in range(len(sets))]
    return RouteLog(
        contexts,
        [tuple(tools) for tools in sets],
        np.arange(len(sets), dtype=float),
        groups,
        {},
        {},
    )


def test_no_group_is_split_and_shares_are_about_right():
    rng = np.random.default_rng(0)
    groups = [f"module {number}" for number in rng.integers(0, 150, 2000)]
    parts = split.split(make([("a",)] * 2000, groups))
    seen = [set(part.groups) for part in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    np.testing.assert_allclose(
        [len(part.sets) / 2000 for part in parts], [0.7, 0.1, 0.2], atol=0.03
    )
    # Order of the records does not matter: the split depends on the groups' names.
    shuffled = make([("a",)] * 2000, groups).take(rng.permutation(2000))
    assert [set(part.groups) for part in split.split(shuffled)] == seen


@pytest.mark.parametrize(("records", "groups"), [(1, 1), (2, 2), (30, 2)])
def test_too_little_to_split(records, groups):
    with pytest.raises(LogError, match="too few"):
        split.split(make([("a",)] * records, [f"g{row % groups}" for row in range(records)]))


def test_the_default_budget_is_the_95th_percentile_and_longer_records_go_whole():
    log = make([("a",)] * 90 + [("a", "b", "c")] * 6 + [("a", "b", "c", "d", "e")] * 4)
    assert split.default_budget(log) == 3
    kept = split.within_budget(log, 3)
    assert len(kept.sets) == 96 and collections.Counter(map(len, kept.sets)) == {1: 90, 3: 6}
    assert split.default_budget(make([(), ()])) == 1


def test_nested_subsets():
    subsets = split.nested_subsets(3000, (2000, 800), seed=0)
    assert [len(rows) for rows in subsets] == [800, 2000, 3000]
    assert set(subsets[0]) < set(subsets[1]) < set(subsets[2])
    assert [len(rows) for rows in split.nested_subsets(100, (800, 2000), 0)] == [25, 50, 100]
    assert [len(rows) for rows in split.nested_subsets(12, (800,), 0)] == [12]
    assert [len(rows) for rows in split.nested_subsets(3000, (), 0)] == [3000]


def test_sets_as_arrays():
    log = make([("b", "a"), (), ("new", "b")])
    assert split.catalogue(log) == ["a", "b", "new"]
    table = split.action_table(log, ["a", "b"], budget=3)
    np.testing.assert_array_equal(np.sort(table, axis=1), [[-1, 0, 1], [-1, -1, -1], [-1, -1, 1]])
