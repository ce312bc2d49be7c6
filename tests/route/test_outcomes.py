"""What the report says of a router, against a count by hand."""

import itertools

import numpy as np
import pytest

import jaxsac
from jaxsac.route import outcomes
from jaxsac.route.log_file import RouteLog

TOOLS = {
    "draw_chart": {"description": "Draw a chart."},
    "draw_table": {"description": "Draw a table."},
    "send_mail": {"description": "Send a mail."},
    "unheard": {"description": "Zzz qqq."},
}
ROUTER = jaxsac.Router.from_tools(TOOLS)
TEXTS = ["draw a chart", "draw table", "send it", "a chart, please", "hello there"]
USED = [("draw_chart",), ("draw_table", "send_mail"), ("send_mail",), ("draw_table",), ()]


def log(texts, sets):
    groups = [str(row) for row in range(len(texts))]
    return RouteLog(texts, sets, np.ones(len(texts)), groups, {}, {})


def judged(router, texts, sets):
    records = log(texts, sets)
    return outcomes.judge(router, records, records, outcomes.answers(router, records))


@pytest.fixture(scope="module")
def found():
    return judged(ROUTER, TEXTS, USED)


def test_recall_and_ndcg_by_hand(found):
    # Rankings begin: chart, table | table, chart | mail | chart, table.
    assert found["recall@1"]["mean"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found["recall@10"]["mean"] == 1
    ranks = [[1], [1, ROUTER_RANK], [1], [2]]
    ideal = [1, 1 + 1 / np.log2(3), 1, 1]
    gains = [sum(1 / np.log2(1 + rank) for rank in one) for one in ranks]
    assert found["ndcg@4"]["mean"] == pytest.approx(np.mean(np.array(gains) / ideal))
    assert found["groups"] == 4 and found["too_small"]


ROUTER_RANK = [choice.tool for choice in ROUTER("draw table", top=4)].index("send_mail") + 1


def test_confusions_and_misses(found):
    pairs = {(row["used"], row["instead"]): row["times"] for row in found["confusions"]}
    assert pairs[("draw_table", "draw_chart")] == 1 and sum(pairs.values()) == len(pairs) == 2
    (miss,) = found["misses"]
    assert miss["text"] == "a chart, please" and miss["offered"] == ["draw_chart"]
    assert found["never_found"] == []


def test_a_tool_that_never_comes_first():
    router = jaxsac.Router(ROUTER.content._replace(weights=ROUTER.weights._replace(budget=1)))
    texts, sets = ["draw a chart", "a chart", "send"], [("unheard",), ("unheard",), ("send_mail",)]
    found = judged(router, texts, sets)
    assert found["never_found"] == [{"tool": "unheard", "uses": 2}]


def test_the_bound_leaves_records_with_tools_an_answer():
    texts = ["draw a chart", "send a mail", "draw the table", "who are you", "good day"]
    sets = [("draw_chart",), ("send_mail",), ("draw_table",), (), ()]
    none = judged(ROUTER, texts, sets)["none"]
    assert none["answered"] == 1 and none["none_without_tools"] == 1
    for text, used in zip(texts, sets, strict=True):
        assert bool(ROUTER(text, at_least=none["at_least"])) == bool(used)


def test_bins_hold_all_that_was_shown(found):
    bins = found["probabilities"]["bins"]
    assert sum(one["count"] for one in bins) == len(TEXTS) * len(TOOLS)
    assert all(a["shown"] <= b["shown"] for a, b in itertools.pairwise(bins))


def test_other_scripts_are_shuffled_by_characters():
    texts = ["明天的天气", "画一张图"]
    found = outcomes._shuffled(texts)
    assert sorted("".join(found)) == sorted("".join(texts)) and list(map(len, found)) == [5, 4]
    words = outcomes._shuffled(["a b c", "d e"])
    assert sorted(" ".join(words).split()) == list("abcde")
