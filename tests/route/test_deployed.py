"""The router that an agent calls: its probabilities against enumeration, its options, its files,
and what it does before there is a log.
"""

import itertools
import json
import warnings

import numpy as np
import pytest

import jaxsac
from jaxsac.route import monitoring, outcomes
from jaxsac.route.deployed import FILE
from jaxsac.route.inclusion import draw, inclusion
from jaxsac.route.log_file import LogError, RouteLog
from jaxsac.route.texts import Vector, index_of

TOOLS = {
    "draw_chart": {"description": "Draw a chart of numbers.", "cost": 3, "family": "plots"},
    "send_mail": {"description": "Send an e-mail to someone.", "cost": 2},
    "查询天气": {"description": "查询城市的天气预报"},
    "create": {
        "description": "Make one.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "invoice": {"type": "string", "description": "the number of the invoice"},
                "lines": {"type": "array", "items": {"properties": {"quantity": {}}}},
            },
        },
    },
    "resize_photo": {"description": "Change the size of a photo.", "cost": 1},
}
ROUTER = jaxsac.Router.from_tools(TOOLS)


def names(choices):
    return [choice.tool for choice in choices]


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_inclusion_against_enumeration(exactly, shift):
    scores = np.random.default_rng(0).normal(size=7) * 2 + shift
    scores[5] = -np.inf
    sets = [
        a
        for size in range(4)
        if size == 3 or not exactly
        for a in itertools.combinations([0, 1, 2, 3, 4, 6], size)
    ]
    totals = np.array([scores[list(a)].sum() for a in sets])
    law = np.exp(totals - totals.max()) / np.exp(totals - totals.max()).sum()
    truth = np.array([sum(p for p, a in zip(law, sets, strict=True) if j in a) for j in range(7)])
    found = inclusion(scores, np.arange(7), 3, exactly=exactly)
    np.testing.assert_allclose(found, truth, rtol=1e-11, atol=1e-30)
    some = inclusion(scores, np.array([4, 1]), 3, exactly=exactly)
    np.testing.assert_allclose(some, truth[[4, 1]], rtol=1e-11, atol=1e-30)


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        ("please draw a chart", "draw_chart"),
        ("E-mail them", "send_mail"),
        ("明天的天气", "查询天气"),  # a script without spaces: by pieces
        ("which invoice was it?", "create"),  # by its parameters
        ("the quantity", "create"),  # inside them
        ("photos", "resize_photo"),
    ],
)
def test_tools_are_found_before_there_is_a_log(text, tool):
    assert ROUTER(text, top=1)[0].tool == tool


def test_options_of_a_call():
    text = "draw a chart and mail it"
    plain = ROUTER(text, top=99)
    assert len(plain) == len(TOOLS)  # as many as may be had, never none
    scores = [choice.score for choice in plain]
    assert scores == sorted(scores, reverse=True)
    assert names(ROUTER(text, top=2)) == names(plain)[:2] and ROUTER(text, top=0) == []
    bound = plain[1].probability
    assert names(ROUTER(text, top=99, at_least=bound)) == names(plain)[:2]
    assert ROUTER(text, at_least=1.0) == []
    worst = names(plain)[-1]
    must = ROUTER(text, top=2, always=[worst])
    assert names(must) == [names(plain)[0], worst]
    assert names(ROUTER(text, top=1, at_least=1.0, always=[worst, worst])) == [worst]
    offered = ["resize_photo", "send_mail"]
    assert set(names(ROUTER(text, top=9, available=offered))) == set(offered)
    assert ROUTER(text, available=[]) == []
    cheap = ROUTER(text, top=5, cost_limit=3.5)
    assert sum(TOOLS[tool].get("cost", 0) for tool in names(cheap)) <= 3.5
    assert "draw_chart" in names(cheap) and "send_mail" not in names(cheap)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ROUTER(" "), "text is empty"),
        (lambda: ROUTER(["x", 3]), "text must be a text"),
        (lambda: ROUTER("x", top=-1), "top must be"),
        (lambda: ROUTER("x", top="3"), "top must be an integer"),
        (lambda: ROUTER.explain("x", top=-1), "top must be"),
        (lambda: ROUTER.scores(3), "text must be a text, got 3"),
        (lambda: ROUTER("x", at_least=2), "at_least must be in"),
        (lambda: ROUTER("x", cost_limit=-1), "cost_limit must be"),
        (lambda: ROUTER("x", always=["none"]), "always: no tool is named none"),
        (lambda: ROUTER("x", available=["none"]), "available: no tool is named none"),
        (lambda: jaxsac.Router.from_tools({}), "names no tool"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_explanation_adds_up():
    text = "draw a chart"
    for found, choice in zip(ROUTER.explain(text, top=5), ROUTER(text, top=5), strict=True):
        assert found.tool == choice.tool and found.records == []
        total = sum(found.channels.values()) + found.learnt + found.constant
        np.testing.assert_allclose([found.score, total], choice.score, rtol=1e-12)


def test_definitions_of_other_systems(tmp_path):
    """An MCP tools/list answer and OpenAI's definitions say the same as our own form."""
    mcp = {"jsonrpc": "2.0", "id": 1, "result": {"tools": []}}
    openai = []
    for name, fields in TOOLS.items():
        schema = fields.get("inputSchema", {"type": "object"})
        about = {"name": name, "description": fields["description"]}
        mcp["result"]["tools"].append(about | {"inputSchema": schema})
        openai.append({"type": "function", "function": about | {"parameters": schema}})
    own = {
        name: {key: value for key, value in fields.items() if key not in ("cost", "family")}
        for name, fields in TOOLS.items()
    }
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(mcp))
    text = "the invoice by mail"
    answers = [jaxsac.Router.from_tools(one)(text) for one in (own, mcp, openai, path)]
    assert answers[0] == answers[1] == answers[2] == answers[3]
    with pytest.warns(UserWarning, match="ignored what is said as colour"):
        jaxsac.Router.from_tools({"a": {"colour": 3}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxsac.Router.from_tools({"a": {}})
    with pytest.raises(LogError, match='item 1 of the list must be an object with a "name"'):
        jaxsac.Router.from_tools([{"type": "function"}])


def test_a_saved_router_gives_the_same_answers(tmp_path):
    ROUTER.save(tmp_path)
    again = jaxsac.Router.load(tmp_path)
    for text in ("draw a chart", "天气", "nothing known: zzz"):
        assert again(text, top=5) == ROUTER(text, top=5)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-100])
    with pytest.raises(jaxsac.FileError, match=r"router\.npz"):
        jaxsac.Router.load(tmp_path)
    with pytest.raises(jaxsac.FileError, match=r"cannot be read"):
        jaxsac.Router.load(tmp_path / "none")


def test_cosines_of_common_and_rare_terms_against_the_dense_product():
    generator = np.random.default_rng(0)
    dense = generator.random((40, 60)) * (generator.random((40, 60)) < np.linspace(0.01, 0.9, 60))
    vectors = [Vector(np.flatnonzero(row), row[row > 0]) for row in dense]
    index = index_of(vectors, 60)
    assert 0 < len(index.common) < 60
    truth = dense @ dense.T
    nothing = Vector(np.zeros(0, int), np.zeros(0))
    for some in ([0], [1], [2, 3, 4], list(range(40))):
        found = index.cosines([vectors[number] for number in some])
        np.testing.assert_allclose(found, truth[some], rtol=1e-5, atol=1e-6)
    for some in ([nothing], [nothing, nothing]):
        assert not index.cosines(some).any()
    for some in (vectors[:1], vectors[:3]):
        assert index_of([], 60).cosines(some).shape == (len(some), 0)


def test_several_texts_are_answered_as_each_alone(monkeypatch):
    monkeypatch.setattr("jaxsac.route.reading._BLOCK", 2)
    texts = ["draw a chart", "send mail to the team", "zzz", "天气", "resize"]
    given = {"top": 4, "always": ["send_mail"], "at_least": 1e-4}
    for text, several in zip(texts, ROUTER(texts, **given), strict=True):
        alone = ROUTER(text, **given)
        assert [one.tool for one in several] == [one.tool for one in alone]
        numbers = [[one[1:] for one in answer] for answer in (several, alone)]
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-4)
    assert ROUTER([]) == []


def test_a_cost_limit_that_nothing_fits_leaves_nothing():
    assert (
        ROUTER("resize a photo", top=5, cost_limit=0.5, available=["send_mail", "draw_chart"]) == []
    )


def test_monitoring(tmp_path):
    """Records as before leave a router alone; what it does not know, or gets wrong, does not."""
    texts = ["draw a chart", "send mail", "resize the photo", "the invoice"] * 10
    sets = [("draw_chart",), ("send_mail",), ("resize_photo",), ("create",)] * 10
    log = RouteLog(texts, sets, np.ones(40), texts, {}, {})
    weights = ROUTER.weights._replace(cold=np.zeros(len(TOOLS), bool), budget=1)
    router = jaxsac.Router(ROUTER.content._replace(weights=weights))
    with pytest.raises(ValueError, match="needs a router that learnt"):
        router.monitor(texts, sets)
    router = outcomes.held_to(router, log, outcomes.answers(router, log))
    router.save(tmp_path)
    router = jaxsac.Router.load(tmp_path)
    same = router.monitor(texts[:8], sets[:8])
    assert not same.learn_again and same.records == 8 and same.hit_rate.now == 1
    wrong = router.monitor(texts, [sets[(n + 1) % 4] for n in range(40)])
    assert wrong.learn_again and wrong.hit_rate == monitoring.Change(0, 1, wrong.hit_rate.z)
    new = router.monitor(texts, [("unknown",)] * 40)
    assert new.learn_again and new.new_tools.now == 1 and new.new_tools.z > 3
    empty = router.monitor(texts[:3], [()] * 3)
    assert not empty.learn_again and empty.hit_rate.z == 0
    with pytest.raises(ValueError, match="got 1 texts and 1 sets"):
        router.monitor(texts[:1], sets[:1])


def test_changes_have_the_statistic_of_welch():
    generator = np.random.default_rng(0)
    then, now = generator.normal(0.5, 0.1, (500, 3)), generator.normal(0.5, 0.2, (300, 3))
    found = monitoring.compare(monitoring.moments(then), now)
    stats = pytest.importorskip("scipy.stats")
    expected = stats.ttest_ind(then[:, 0], now[:, 0], equal_var=False).statistic
    assert found.hit_rate.z == pytest.approx(expected, rel=0.1)
    assert found.new_tools.now == pytest.approx(now[:, 2].mean())


@pytest.mark.parametrize("exactly", [False, True])
@pytest.mark.parametrize("shift", [0.0, 300.0, -3.0])
def test_draws_have_the_chance_that_they_say(exactly, shift):
    scores, rate = np.array([0.5, -1.0, -0.2, -np.inf, 1.0]) + shift, 0.6
    generator, size, budget = np.random.default_rng(0), 4000, 3
    sets = [a for n in range(budget + 1) for a in itertools.combinations([0, 1, 2, 4], n)]
    sets = [a for a in sets if len(a) == budget] if exactly else sets
    totals = np.array([scores[list(a)].sum() for a in sets])
    law = np.exp(totals - totals.max())
    chance = rate * law / law.sum()
    chance[np.argmax(totals)] += 1 - rate  # the most probable set
    truth = dict(zip(sets, chance, strict=True))
    counts, tools = {}, np.zeros(scores.size)
    for _ in range(size):
        drawn, said = draw(generator, scores, rate, budget, exactly)
        counts[tuple(drawn)] = counts.get(tuple(drawn), 0) + 1
        assert said == pytest.approx(truth[tuple(drawn)], rel=1e-9)
        tools[drawn] += 1 / size
    for chosen, share in truth.items():
        assert abs(counts.get(chosen, 0) - size * share) < 5 * np.sqrt(size * share) + 1
    expected = np.array([sum(c for a, c in truth.items() if tool in a) for tool in range(5)])
    assert np.all(abs(tools - expected) < 5 * np.sqrt(expected * (1 - expected) / size) + 1e-12)


def test_exploration_of_a_router():
    text, offered = "draw a chart", ["draw_chart", "create"]
    # The law's most probable set: of the tools that are on offer, those of a score above 0.
    assert ROUTER.explore(text, 3, rate=0, available=offered) == (["draw_chart"], 1.0)
    assert ROUTER.explore("zzz", 3, rate=0) == ([], 1.0)
    assert ROUTER.explore(text, 3, rate=0.5) == ROUTER.explore(text, 3, rate=0.5)
    drawn = {tuple(ROUTER.explore(text, n, rate=1, available=offered).tools) for n in range(40)}
    assert len(drawn) > 1 and all(set(one) <= set(offered) for one in drawn)
    assert ROUTER.explore(text, 0, available=[]) == ([], 1.0)
    with pytest.raises(ValueError, match="text is empty"):
        ROUTER.explore(" ", 0)
    with pytest.raises(ValueError, match="rate must be in"):
        ROUTER.explore(text, 0, rate=2)
    with pytest.raises(ValueError, match="seed must be"):
        ROUTER.explore(text, -1)
