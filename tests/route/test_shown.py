"""What records were shown, and with what chance their sets were drawn: the fit and the report's
value, on a log small enough to enumerate.
"""

import itertools

import numpy as np
import pytest

from jaxsac.route import evaluate, joint, split
from jaxsac.route.log_file import LogError, RouteLog
from jaxsac.route.value import value

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


def sets_and_mass(z, budget=2):
    """All sets within the budget of three tools, and their probabilities."""
    sets = [a for n in range(budget + 1) for a in itertools.combinations(range(3), n)]
    mass = np.exp([z[list(a)].sum() for a in sets])
    return sets, mass / mass.sum()


@pytest.mark.parametrize("drawn", [True, False])
def test_the_value_against_enumeration(found, drawn):
    """Doubly robust of the records with a propensity, or the model alone of all."""
    test = log(12, GENERATOR.uniform(size=12))
    chances = np.where(np.arange(12) == 3, np.nan, test.propensities) if drawn else None
    judged = test.take(np.delete(np.arange(12), 3)) if drawn else test
    z = evaluate.masked(joint.scores(found, test.contexts), split.shown_table(test, NAMES))
    table = split.action_table(test, NAMES, 2)
    made = value(z, table, test._replace(propensities=chances), 2)
    rows, expected, weights = [], [], []
    for row, used, chance in zip(
        np.delete(z, 3, axis=0) if drawn else z, judged.sets, judged.propensities, strict=True
    ):
        sets, law = sets_and_mass(row)
        p = np.array([law[[j in a for a in sets]].sum() for j in range(3)])

        def features(a, p=p):
            return np.array([1, len(a), p[list(a)].sum(), p.sum()])

        own = tuple(sorted(NAMES.index(name) for name in used))
        rows.append(features(own))
        expected.append(sum(mass * features(a) for a, mass in zip(sets, law, strict=True)))
        weights.append(law[sets.index(own)] / chance)
    rows, utilities = np.array(rows), judged.utilities
    fit = np.linalg.solve(rows.T @ rows + 1e-3 * np.eye(4), rows.T @ utilities)
    truth = np.mean(expected @ fit)
    truth += np.average(utilities - rows @ fit, weights=weights) if drawn else 0.0
    np.testing.assert_allclose(made["value"], truth, rtol=1e-4)
    assert made["lower"] < truth < made["upper"] and made["records"] == len(rows) and made["few"]
    assert made["method"] == ("doubly robust" if drawn else "direct")
    assert value(z, table, test._replace(utilities=np.ones(12)), 2) is None


def test_one_record_that_outweighs_all_says_nothing():
    """Its own error is 0; what the law would have earned is not known for that."""
    size = 200
    test = log(size, np.arange(size) % 2.0)
    chances = np.where(np.arange(size) == 7, 1e-9, 0.5)
    table = split.action_table(test, NAMES, 2)
    made = value(np.zeros((size, 3)), table, test._replace(propensities=chances), 2)
    assert made["few"] and made["effective_groups"] < 1.01
    assert made["lower"] == 0 and made["upper"] == 1
    # Sets of two tools alone, and none was drawn: nothing agrees.
    short = np.where(table == table.max(axis=1, keepdims=True), -1, table)
    made = value(np.zeros((size, 3)), short, test._replace(propensities=chances), 2, exactly=True)
    assert made["few"] and made["effective_groups"] == 0
    assert (made["lower"], made["upper"]) == (0, 1) and 0 <= made["value"] <= 1


def test_the_interval_holds_the_truth_where_few_records_are_effective():
    """Two laws that hardly agree: 95 % intervals of 40 logs."""
    generator, size, held, few = np.random.default_rng(1), 60, 0, 0
    for _ in range(40):
        z, groups = 2.0 * generator.normal(size=(size, 3)), [str(row // 2) for row in range(size)]
        useful = generator.random((size, 3)) < 0.5
        truth, picked, chances = 0.0, [], np.zeros(size)
        for row in range(size):
            sets, law = sets_and_mass(z[row])
            hits = np.array([useful[row, list(a)].sum() / 2 for a in sets])
            truth += law @ hits / size
            logged = sets_and_mass(-z[row])[1]
            drawn = generator.choice(len(sets), p=logged)
            picked.append((sets[drawn], hits[drawn]))
            chances[row] = logged[drawn]
        sets, utilities = zip(*picked, strict=True)
        named = [tuple(NAMES[j] for j in a) for a in sets]
        test = RouteLog([""] * size, named, np.array(utilities), groups, {}, {}, None, chances)
        made = value(z, split.action_table(test, NAMES, 2), test, 2)
        held, few = held + (made["lower"] <= truth <= made["upper"]), few + made["few"]
    assert held >= 37 and few > 30
