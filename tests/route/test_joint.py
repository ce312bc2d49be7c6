"""What the router's fit sees of texts, and that the deployed router sees the same."""

import types

import numpy as np
import pytest

from jaxsac.route import joint
from jaxsac.route.log_file import RouteLog
from jaxsac.route.reading import Vectors
from jaxsac.route.texts import Vector

NAMES = ["draw", "load", "never", "send"]
WORDS = ["red", "blue", "chart", "table", "mail", "file", "sum", "now", "plot", "row"]


def log(size, seed):
    """Texts of three words, some of them equal; the first word decides the tool."""
    words = np.random.default_rng(seed).integers(0, len(WORDS), (size, 3))
    texts = [" ".join(WORDS[one] for one in row) for row in words]
    sets = [(NAMES[(0, 1, 3)[row[0] % 3]],) for row in words]
    return RouteLog(texts, sets, np.ones(size), [str(n) for n in range(size)], {}, {})


def dense(vectors, terms):
    table = np.zeros((len(vectors), terms))
    for row, vector in enumerate(vectors):
        table[row, vector.term] = vector.value
    return table


@pytest.mark.parametrize("anchors", [90, 12])
def test_features_have_the_inner_products_of_the_texts(anchors, monkeypatch):
    """All of them where every text is an anchor; else those of the projection on the anchors."""
    monkeypatch.setattr(joint, "_ANCHORS", anchors)
    reading, vectors = joint.read_log_texts(log(90, 0), NAMES, {})
    similar, _ = joint._look(reading, vectors)
    directions = joint._directions(similar[reading.anchors], 1000, 2)
    sizes = [len(one.number) for one in reading.vocabularies]
    X = np.hstack([dense([pair[k] for pair in vectors], sizes[k]) for k in (0, 1)])
    basis = np.linalg.svd(X[reading.anchors], full_matrices=False)
    onto = basis[2][basis[1] ** 2 > 2e-3]
    truth = joint._LENGTH**2 / 2 * (X @ onto.T) @ (X @ onto.T).T
    np.testing.assert_allclose((similar @ directions) @ (similar @ directions).T, truth, atol=2e-3)
    first = joint._directions(similar[reading.anchors], 3, 2)
    np.testing.assert_allclose(similar @ first, (similar @ directions)[:, :3], atol=1e-5)
    assert joint._directions(np.zeros((4, 4)), 3, 2).shape == (4, 1)  # texts without known terms


def test_the_deployed_router_scores_as_the_fit():
    """One text by numpy alone and many by sparse products; a tool without records too."""
    found = joint.fit_policy(log(90, 0), log(30, 1), NAMES, 1, 64)
    assert found.policy.support.size and found.certificate["status"] == "CONVERGED"
    router = joint.deployed(found, log(30, 1), {})
    texts = [*log(20, 2).contexts, "unknown words", "red"]
    expected = joint.scores(found, texts)
    np.testing.assert_allclose([router.scores(text) for text in texts], expected, atol=1e-4)
    assert np.ptp(expected[:-2], axis=0).min() > 0.01


def test_a_record_does_not_find_its_own_group():
    reading, vectors = joint.read_log_texts(log(90, 0), NAMES, {})
    everyone = [np.arange(90)] * 90
    assert not joint._look(reading, vectors, everyone)[1][:, 4:].any()
    assert joint._look(reading, vectors)[1][:, 4:].any(axis=(1, 2)).all()
    nothing = Vector(np.zeros(0, int), np.zeros(0))
    assert not joint._look(reading, [Vectors(nothing, nothing)])[1].any()


def test_a_penalty_chosen_on_some_records_is_that_of_all(monkeypatch):
    """Noise falls as the root of their number; a number is heeded."""
    monkeypatch.setattr(joint, "_PATH_RECORDS", 40)
    given = log(90, 0), log(30, 1), NAMES, 1, 64
    found = joint.fit_policy(*given)
    on_some = np.array([row["lam"] for row in found.tried[:-1]]) * (40 / 90) ** 0.5
    assert np.abs(on_some / found.certificate["lam"] - 1).min() < 1e-6
    assert found.certificate["status"] == "CONVERGED"
    assert joint.fit_policy(*given, lam=0.01).certificate["lam"] == pytest.approx(0.01)


def test_a_bound_on_the_support():
    """It leaves some tools with context, and says nothing where it does not bind."""
    given = log(90, 0), log(30, 1), NAMES, 1, 64
    free = joint.fit_policy(*given)
    assert free.policy.support.size == 3
    loose = joint.fit_policy(*given, keep=3)
    assert loose.tried == free.tried and loose.certificate == free.certificate
    few = joint.fit_policy(*given, keep=2)
    assert 1 <= few.policy.support.size <= 2 and few.certificate["status"] == "CONVERGED"
    within = [row["validation"] for row in few.tried if 1 <= row["support"] <= 2]
    assert max(within) == next(
        row["validation"] for row in few.tried if row["lam"] == few.certificate["lam"]
    )


def test_a_penalty_beyond_the_largest_is_the_largest():
    """An update of such a fit can let a tool in."""
    found = joint.fit_policy(log(90, 0), log(30, 1), NAMES, 1, 64, lam=50.0)
    assert found.policy.support.size == 0
    assert found.certificate["lam"] == found.certificate["lam_max"] < 1


def test_words_that_say_nothing_get_no_weight():
    """A record does not find itself in what its own words are said to speak for."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 300, (200, 6))
    texts = [" ".join(f"w{number:03d}x" for number in row) for row in rows]
    noise = log(200, 0)._replace(contexts=texts, groups=[str(n) for n in range(200)])
    found = joint.fit_policy(noise, log(30, 1), NAMES, 1, 64, lam=0.1)
    place = found.reading.channel_names.index("words of its records")
    assert abs(float(found.policy.weights[place])) < 1.0


def test_what_failed_speaks_less_for_a_tool():
    """Equal texts, one half with a tool that served, the other with one that did not."""
    sets, texts = [("draw",)] * 20 + [("load",)] * 20, ["red chart", "blue table"] * 20
    groups = [str(row) for row in range(40)]
    served = np.repeat([1.0, 0.0], 20)
    both = RouteLog(texts, sets, served, groups, {}, {})
    for utilities, ratio in ((served, np.exp(2)), (np.ones(40), 1.0)):
        reading, vectors = joint.read_log_texts(both._replace(utilities=utilities), NAMES, {})
        ((about, near),) = reading.cosines(vectors[:1])
        taught = reading.channels(about, near)[reading.kinds + 1, :2]
        assert taught[0] / taught[1] == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize(
    "lost, taken",
    [
        ([0.3, -0.1, 0.2, -0.2], 0.4),  # within its error
        ([0.3, 0.25, 0.35, 0.3], 0.2),  # beyond
        ([0.0, 0.0, 0.0, 0.0], 0.4),
    ],
)
def test_the_sparsest_penalty_within_one_error_of_the_best_is_taken(lost, taken):
    """Records in four groups; the third penalty is worse, so that the fourth is never tried."""
    by_group = np.repeat(np.eye(4), 2, axis=0)
    values = {0.4: by_group @ -np.array(lost), 0.2: np.zeros(8), 0.1: np.full(8, -1.0)}
    fits = {lam: fit_of(lam) for lam in values}
    given = (0.4, 0.2, 0.1, 0.05), lambda lam, _: fits[lam]
    lam, found = joint._sparsest(*given, lambda one: values[one.stats["lam"]], list("aabbccdd"))
    assert lam == taken and found is fits[taken]


def test_one_group_has_no_standard_error():
    values = {0.4: np.full(8, -0.1), 0.2: np.zeros(8), 0.1: np.full(8, -1.0)}
    given = tuple(values), lambda lam, _: fit_of(lam)
    assert joint._sparsest(*given, lambda one: values[one.stats["lam"]], ["a"] * 8)[0] == 0.2


def fit_of(lam):
    """A solution with one tool in its support, and no more to it."""
    value = types.SimpleNamespace(support=np.zeros(1, int))
    return types.SimpleNamespace(value=value, stats={"lam": lam})


def test_scores_are_stretched_to_the_records_that_judge_them():
    """Records whose tools say the contrary: the policy believes its scores less."""
    said, denied = log(30, 1), log(30, 1)
    contrary = tuple((NAMES[1 - NAMES.index(name)],) for (name,) in denied.sets)
    denied = denied._replace(sets=contrary)
    sure, unsure = (joint.fit_policy(log(90, 0), one, NAMES, 1, 64) for one in (said, denied))
    spread = [np.ptp(joint.scores(one, said.contexts), axis=1).mean() for one in (sure, unsure)]
    assert spread[1] < 0.2 * spread[0]


def test_records_without_tools_lower_all_scores():
    """By the constant: the slope alone takes 1.3 nats."""
    training, said = log(90, 0), log(30, 1)
    training = training._replace(sets=[(), *training.sets[1:]])
    level = []
    for without in (1, 15):
        judged = said._replace(sets=[()] * without + list(said.sets[without:]))
        found = joint.fit_policy(training, judged, NAMES, 1, 64)
        level.append(joint.scores(found, said.contexts).max(axis=1).mean())
    assert level[1] < level[0] - 2.5
