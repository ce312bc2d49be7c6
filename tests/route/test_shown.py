"""What records were shown, and with what chance their sets were drawn: the fit and the report's
value, on a log small enough to enumerate.
"""

import itertools

import numpy as np
import pytest

from jaxsac.route import evaluate, joint, split
from jaxsac.route.log_file import LogError, RouteLog

NAMES = ["first", "other", "second"]
GENERATOR = np.random.default_rng(0)


def log(size, shares):
    """Half of the records are shown `second` alone of two tools that mean the same, and use it; of
    the others, shown both, most use `first`.
    """
    rows = np.arange(size)
    texts = [f"open the {word} door" for word in np.array(["red", "blue", "green"])[rows % 3]]
    both = rows % 2 == 0
    sets = [
        ("first",) if wide and row % 10 else ("second",)
        for row, wide in zip(rows, both, strict=True)
    ]
    shown = [tuple(NAMES) if wide else ("other", "second") for wide in both]
    utilities = np.ones(size) if shares is None else shares
    chances = GENERATOR.uniform(0.2, 0.9, size)
    return RouteLog(texts, sets, utilities, [str(r) for r in rows], {}, {}, shown, chances)


@pytest.fixture(scope="module")
def found():
    return joint.fit_policy(log(60, None), log(20, None), NAMES, 2, 4)


def test_what_was_not_shown_teaches_nothing(found):
    z = joint.scores(found, ["open the red door"])[0]
    assert z[0] > z[2]  # though `second` was used more often


def test_records_without_a_choice_are_left_out():
    """They were shown what they used alone; the empty set was a choice of the third."""
    found = log(4, None)
    shown = [("first",), None, ("other",), ()]
    sets = [("first", "other"), ("first",), (), ()]
    kept = split.with_choice(found._replace(shown=shown, sets=sets))
    assert kept.groups == ["1", "2"] and kept.shown == [None, ("other",)]
    with pytest.raises(LogError, match="shown only the tools that it used"):
        split.with_choice(found._replace(shown=[("second",)] * 4, sets=[("second",)] * 4))


def test_the_value_against_enumeration(found):
    test = log(12, np.linspace(0, 1, 12))
    test = test._replace(propensities=np.where(np.arange(12) == 3, np.nan, test.propensities))
    judged = test.take(np.delete(np.arange(12), 3))
    z = evaluate.masked(joint.scores(found, judged.contexts), split.shown_table(judged, NAMES))
    weights = []
    for row, used, chance in zip(z, judged.sets, judged.propensities, strict=True):
        sets = [a for n in range(3) for a in itertools.combinations(range(3), n)]
        mass = np.exp([row[list(a)].sum() for a in sets])
        weights.append(np.exp(sum(row[NAMES.index(name)] for name in used)) / mass.sum() / chance)
    truth = np.average(judged.utilities, weights=weights)
    value = joint.value(found, test)
    np.testing.assert_allclose(value["value"], truth, rtol=1e-5)
    assert value["lower"] < truth < value["upper"] and value["records"] == 11
    assert joint.value(found, test._replace(propensities=None)) is None
