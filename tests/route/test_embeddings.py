"""Embeddings beside the texts: their channels against loops, a log that only they explain, files,
and what is refused.
"""

import json

import numpy as np
import pytest

import jaxsac
from jaxsac import _files
from jaxsac.route import joint, log_file, outcomes
from jaxsac.route.content import unpack
from jaxsac.route.deployed import FILE, KIND
from jaxsac.route.embeddings import fit_embedded
from jaxsac.route.log_file import LogError, RouteLog
from jaxsac.route.reading import NEIGHBOURS
from jaxsac.route.tool_file import Tool

GENERATOR = np.random.default_rng(0)
NAMES = ["north", "east", "south", "west"]
POLES = np.eye(4, 6) * 3 + 5  # far from the origin, as encoders' answers are
TOOLS = {name: Tool(embedding=tuple(pole)) for name, pole in zip(NAMES, POLES, strict=True)}


def log(size, seed):
    """The texts are the same few words; the embedding alone says which tool."""
    generator = np.random.default_rng(seed)
    which = generator.integers(0, 4, size)
    words = [" ".join(generator.permutation(["do", "this", "now"])) for _ in range(size)]
    embeddings = POLES[which] + generator.normal(size=(size, 6)) * 0.3
    sets, groups = [(NAMES[n],) for n in which], [f"{seed} {n}" for n in range(size)]
    return RouteLog(words, sets, np.ones(size), groups, TOOLS, {}, embeddings=embeddings)


@pytest.fixture(scope="module")
def learnt():
    training, judged = log(60, 0), log(20, 1)
    found = joint.fit_policy(training, judged, NAMES, 1, 4)
    return found, joint.deployed(found, judged, TOOLS), log(40, 2)


def test_channels_against_loops():
    records, tools = GENERATOR.normal(size=(30, 5)), GENERATOR.normal(size=(4, 5))
    known = [*map(tuple, tools[:3]), ()]
    sets = [(NAMES[n % 4],) if n % 3 else (NAMES[0], NAMES[n % 4 or 1]) for n in range(30)]
    utilities = GENERATOR.normal(size=30)
    training = RouteLog(["a b"] * 30, sets, utilities, ["g"] * 30, {}, {}, embeddings=records)
    worth = np.exp((utilities - utilities.mean()) / utilities.std())
    worth /= worth.mean()
    described = {name: Tool(embedding=one) for name, one in zip(NAMES, known, strict=True)}
    reading, vectors = joint.read_log_texts(training, NAMES, described)

    def unit(row):
        return (row - records.mean(0)) / np.linalg.norm(row - records.mean(0))

    for row, left_out in ((3, [3, 4, 5]), (17, [])):
        ((about, cosines),) = reading.cosines([vectors[row]])
        cosines[:, left_out] = 0
        channels = reading.channels(about, cosines)
        found = dict(zip(reading.channel_names, channels, strict=True))
        query = unit(records[row])
        about = [query @ unit(np.array(one)) if one else 0 for one in known]
        near = [0.0 if n in left_out else query @ unit(records[n]) for n in range(30)]
        best = sorted(range(30), key=lambda n: -near[n])[:NEIGHBOURS]
        used = [
            sum(worth[n] * near[n] ** 3 for n in best if near[n] > 0 and name in sets[n])
            for name in NAMES
        ]
        # vectors are half precision
        np.testing.assert_allclose(found["tool embedding"], about, atol=4e-3)
        np.testing.assert_allclose(found["near by embedding"], used, atol=4e-3)


def test_a_log_that_only_embeddings_explain(learnt, tmp_path):
    found, router, test = learnt
    right = [used[0] for used in test.sets]
    answers = router(test.contexts, top=1, embedding=test.embeddings)
    assert np.mean([a[0].tool == b for a, b in zip(answers, right, strict=True)]) > 0.95
    blind = [1.0 * (router.scores("do this now", embedding=one).argmax() == 0) for one in POLES]
    assert blind == [1, 0, 0, 0]
    scores = joint.scores(found, test.contexts, test.embeddings)
    one = router.scores(test.contexts[0], embedding=test.embeddings[0])
    np.testing.assert_allclose(one, scores[0], rtol=1e-4, atol=1e-4)
    explained = router.explain("do this", top=1, embedding=POLES[2])[0]
    assert explained.tool == "south" and explained.records
    assert "near by embedding" in explained.channels
    judged = outcomes.judge(router, test, test, outcomes.answers(router, test))
    assert judged["recall@1"]["mean"] > 0.95 and judged["none"]["none_shuffled"] is None
    router = outcomes.held_to(router, test, outcomes.answers(router, test))
    router.save(tmp_path)
    again = jaxsac.Router.load(tmp_path, embed=lambda texts: np.tile(POLES[1], (len(texts), 1)))
    assert again(test.contexts, top=4, embedding=test.embeddings) == router(
        test.contexts, top=4, embedding=test.embeddings
    )
    assert again("do this", top=1)[0].tool == again(["do"], top=1)[0][0].tool == "east"
    assert again.explore("do this", 0, rate=0).tools == ["east"]
    assert not again.monitor(test.contexts, test.sets, embedding=test.embeddings).learn_again
    assert again.monitor(test.contexts, test.sets).hit_rate.now < 0.6  # always east


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "this router reads embeddings: give embedding="),
        ({"embedding": POLES[0, :3]}, "embedding must be 6 numbers, as those learnt from, got 3"),
        ({"embedding": POLES[0] * np.nan}, r"embedding must be an array \[d\] of finite numbers"),
        ({"embedding": ["a"] * 6}, r"embedding must be an array \[d\] of finite numbers"),
        ({"embedding": [1j] * 6}, r"embedding must be an array \[d\] of finite numbers"),
        ({"embedding": [[1.0], [1.0, 2.0]]}, r"embedding must be an array \[d\] of finite numbers"),
    ],
)
def test_bad_embeddings_are_named(learnt, given, message):
    with pytest.raises(ValueError, match=message):
        learnt[1]("do this", **given)
    with pytest.raises(ValueError, match="embedding must be of 2 texts, got 3 rows"):
        learnt[1](["do", "this"], embedding=POLES[:3])
    with pytest.raises(ValueError, match="learnt from none"):
        jaxsac.Router.from_tools({"a": {}})("x", embedding=POLES[0])


def test_a_file_that_does_not_fit_itself(learnt, tmp_path):
    learnt[1].save(tmp_path)
    arrays, given = _files.load(tmp_path / FILE, KIND)
    for name in ("embedded.tools", "embedded.records"):
        with pytest.raises(ValueError, match="not of the number"):
            unpack({**arrays, name: arrays[name][:-1]}, given)
    with pytest.raises(ValueError, match="not finite"):
        unpack({**arrays, "embedded.centre": arrays["embedded.centre"] * np.nan}, given)
    with pytest.raises(ValueError, match="channels are those of another"):
        unpack({name: a for name, a in arrays.items() if name != "embedded.centre"}, given)


def test_before_there_is_a_log():
    """An encoder that knows synonyms finds a tool that shares no word."""

    def encoder(texts):
        money = ("invoice", "bill"), ("picture", "photo"), ("weather", "rain")
        rows = [[any(word in text for word in pair) for pair in money] for text in texts]
        return np.array(rows, float) + 1

    tools = {"invoice_maker": {}, "photo_editor": {}, "weather_report": {}}
    router = jaxsac.Router.from_tools(tools, embed=encoder)
    answers = router(["a bill for Ann", "the picture", "will it rain"], top=1)
    assert [one[0].tool for one in answers] == list(tools)
    own = {name: {"embedding": encoder([name])[0].tolist()} for name in tools}
    given = jaxsac.Router.from_tools(own)
    np.testing.assert_array_equal(
        given.scores("a bill", embedding=encoder(["a bill"])[0]), router.scores("a bill")
    )
    assert router([]) == []
    with pytest.raises(ValueError, match="text must be a text, got 5"):
        router.scores(5)
    with pytest.raises(ValueError, match=r"what embed gives must be an array \[n, d\]"):
        jaxsac.Router.from_tools(tools, embed=lambda texts: np.zeros(3))
    with pytest.raises(ValueError, match="embed must be a function of texts, got 5"):
        jaxsac.Router.from_tools(tools, embed=5)
    same = jaxsac.Router.from_tools(tools, embed=lambda texts: np.full((len(texts), 3), 0.1))
    plain = jaxsac.Router.from_tools(tools)
    np.testing.assert_array_equal(same.scores("a bill"), plain.scores("a bill"))
    none = jaxsac.Router.from_tools({"a": {"embedding": None}, "b": {}})
    assert none.reading.embedded is None
    with pytest.raises(LogError, match=r"have \[1, 2\] numbers"):
        jaxsac.Router.from_tools({"a": {"embedding": [1]}, "b": {"embedding": [1, 2]}})
    with pytest.raises(LogError, match='tool "a": "embedding" must be a list of finite numbers'):
        jaxsac.Router.from_tools({"a": {"embedding": [1, "x"]}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], '"embedding" must be a list of 2 numbers as in .* got a list of 3 numbers'),
        (None, '"embedding" must be a list of 2 numbers as in .* got absent'),
        ("x", '"embedding" must be a list of finite numbers'),
        ([1, 1e200], '"embedding" must be a list of finite numbers'),
    ],
)
def test_a_bad_line_of_a_log_is_named(tmp_path, value, message):
    record = {"context": "a", "tools": ["t"], "embedding": [0.5, -2.0]}
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, [record, record | {"embedding": value}])))
    with pytest.raises(LogError, match=f"line 2: {message}"):
        log_file.read_log(path)
    path.write_text(json.dumps(record | {"context": [1.0]}))
    with pytest.raises(LogError, match='"embedding" goes with a text'):
        log_file.read_log(path)


def test_a_log_is_read_as_it_was_written(tmp_path):
    written = log(5, 3)
    log_file.write_log(tmp_path, written)
    read = log_file.read_log(tmp_path / "log.jsonl")
    np.testing.assert_array_equal(read.embeddings, written.embeddings)
    assert read.tools == TOOLS and read.take([4, 0]).embeddings.shape == (2, 6)
    assert log_file.log_hash(read) != log_file.log_hash(read._replace(embeddings=None))


def test_embeddings_that_say_nothing():
    """One record, equal records, zeros and huge numbers give vectors, not NaN."""
    assert not fit_embedded(np.full((7, 2), 0.1), [(0.1, 0.1)]).records.any()
    for records in (np.ones((1, 3)), np.ones((4, 3)), np.zeros((2, 3)), np.eye(3) * 1e99):
        found = fit_embedded(records, [(), (1.0, 2.0, 3.0)])
        assert all(np.isfinite(part).all() for part in found)
        assert np.isfinite(found.vector(records[0])).all() and not found.tools[0].any()
    assert fit_embedded(np.zeros((0, 0)), [(), ()]) is None
