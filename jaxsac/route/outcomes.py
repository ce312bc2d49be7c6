"""What a router gets right and wrong on held-out records of texts: what it finds, what it misses
and offers instead, how true its probabilities are, and below which one it should offer nothing.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsac.route import evaluate, monitoring
from jaxsac.route.deployed import Choice, Router
from jaxsac.route.log_file import RouteLog
from jaxsac.route.value import FEW

_DEPTHS = 1, 3, 5, 10  # of recall
_SHOWN = 10  # tools of a record whose probabilities are judged
_LISTED = 10  # tools never found, confusions, misses
_LENGTH = 160  # of a missed text, in characters
_BINS = 10
_DRAWS = 200
_ANSWERED = 0.95  # of the records with tools keep an answer

Answers = list[list[Choice]]


def answers(router: Router, log: RouteLog) -> Answers:
    """The ten best tools for each text, or as many as the budget."""
    top = max(_SHOWN, router.weights.budget)
    return router(list(log.contexts), top=top, embedding=log.embeddings)


def shown_and_used(
    found: Answers, sets: Sequence[tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities that are shown, and whether the record used the tool."""
    pairs = [
        (choice.probability, choice.tool in used)
        for row, used in zip(found, sets, strict=True)
        for choice in row
    ]
    shown, used = np.array(pairs, float).reshape(-1, 2).T
    return np.clip(shown, 1e-9, 1 - 1e-9), used


def held_to(router: Router, test: RouteLog, found: Answers) -> Router:
    """The router that knows how it did on held-out records, for `Router.monitor`."""
    reference = monitoring.moments(monitoring.seen(router, test.contexts, test.sets, found))
    return Router(router.content._replace(reference=reference))


def judge(router: Router, validation: RouteLog, test: RouteLog, found: Answers) -> dict[str, Any]:
    """The figures of the report on the answers `found` to the records of `test`, over all tools,
    those that training never saw too; the threshold of an answer is chosen on `validation`.
    """
    rows = [row for row, used in enumerate(test.sets) if used]
    sets = [test.sets[row] for row in rows]
    ranked = [[choice.tool for choice in found[row]] for row in rows]
    groups, budget = [test.groups[row] for row in rows], router.weights.budget
    measured = _measured(ranked, sets, budget)
    used = collections.Counter(tool for tools in sets for tool in tools)
    pairs = list(zip(ranked, sets, strict=True))
    hit = {tool for best, tools in pairs for tool in set(best[:budget]).intersection(tools)}
    never = sorted(((n, tool) for tool, n in used.items() if tool not in hit), reverse=True)
    return {
        "groups": len(set(groups)),
        "too_small": len(set(groups)) < FEW,
        "tools_used": len(used),
        **{name: evaluate.summary(values, groups) for name, values in measured.items()},
        "never_found": [{"tool": tool, "uses": n} for n, tool in never],
        "confusions": _confusions(pairs),
        "misses": _misses([found[row] for row in rows], [test.contexts[row] for row in rows], sets),
        "probabilities": _probabilities(*shown_and_used(found, test.sets)),
        "none": _none(router, validation, test, found),
    }


def _measured(
    ranked: list[list[str]], sets: Sequence[tuple[str, ...]], budget: int
) -> dict[str, np.ndarray]:
    """recall@k and nDCG@B by record, as in `evaluate.measure`."""
    depths = sorted({*_DEPTHS, budget})
    found = {f"recall@{k}": [] for k in depths} | {f"ndcg@{budget}": []}
    discounts = 1 / np.log2(np.arange(2, budget + 2))
    for best, used in zip(ranked, sets, strict=True):
        hits = np.array([tool in used for tool in best])
        for k in depths:
            found[f"recall@{k}"].append(hits[:k].sum() / len(used))
        gain = hits[:budget] @ discounts[: hits[:budget].size]
        found[f"ndcg@{budget}"].append(gain / discounts[: min(len(used), budget)].sum())
    return {name: np.array(values) for name, values in found.items()}


def _confusions(pairs: list[tuple[list[str], tuple[str, ...]]]) -> list[dict[str, Any]]:
    """Which tool stood in the place of one that was used, most often first: for a record of n
    tools, the best wrong one of the n best and each tool that is not among them.
    """
    counts = collections.Counter()
    for best, used in pairs:
        first = best[: len(used)]
        wrong = [tool for tool in first if tool not in used]
        counts.update((tool, wrong[0]) for tool in used if wrong and tool not in first)
    order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_LISTED]
    return [{"used": a, "instead": b, "times": n} for (a, b), n in order]


def _misses(
    found: Answers, texts: Sequence[str], sets: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """The records of which the best tools held none that was used, the surest of them first."""
    rows = []
    for answer, text, used in zip(found, texts, sets, strict=True):
        best = [choice.tool for choice in answer[: len(used)]]
        if best and not set(best).intersection(used):
            text = " ".join(text.split())
            short = text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"
            row = {"text": short, "used": list(used), "offered": best}
            rows.append(row | {"probability": answer[0].probability})
    return sorted(rows, key=lambda row: -row["probability"])[:_LISTED]


def _probabilities(shown: np.ndarray, used: np.ndarray) -> dict[str, Any]:
    """The expected calibration error with its bootstrap error, and its bins."""
    generator = np.random.default_rng(0)
    draws = (generator.integers(0, shown.size, shown.size) for _ in range(_DRAWS))
    spread = np.std([evaluate.calibration_error(shown[d], used[d], _BINS) for d in draws])
    parts = np.array_split(np.argsort(shown, kind="stable"), _BINS)
    bins = [
        {"shown": float(shown[p].mean()), "used": float(used[p].mean()), "count": p.size}
        for p in parts
        if p.size
    ]
    error = evaluate.calibration_error(shown, used, _BINS)
    return {"calibration_error": error, "bootstrap_error": float(spread), "bins": bins}


def _none(router: Router, validation: RouteLog, test: RouteLog, found: Answers) -> dict[str, Any]:
    """The probability below which "none of them" is said: the largest that leaves _ANSWERED of the
    validation records with tools an answer; and what it does to the test records, to those without
    tools and, where texts have no embeddings, to their words in another order.
    """

    def best(found: Answers) -> np.ndarray:
        return np.array([row[0].probability for row in found])

    known = validation.take([row for row, used in enumerate(validation.sets) if used])
    bound = float(np.quantile(best(answers(router, known)), 1 - _ANSWERED, method="lower"))
    has = np.array([bool(used) for used in test.sets])
    real, without = best(found)[has], best(found)[~has]
    nonsense = None
    if test.embeddings is None:  # no one knows the embedding of a text that was shuffled
        nonsense = best(answers(router, test._replace(contexts=_shuffled(test.contexts))))
    return {
        "at_least": bound,
        "answered": float((real >= bound).mean()),
        "none_without_tools": float((without < bound).mean()) if without.size else None,
        "none_shuffled": None if nonsense is None else float((nonsense < bound).mean()),
    }


def _shuffled(texts: Sequence[str] | np.ndarray) -> list[str]:
    """As many words in each text, drawn from all of them; characters, where few texts have two
    words.
    """
    words = [str(text).split() for text in texts]
    between = " "
    if sum(map(len, words)) < 2 * len(words):
        words, between = [list(str(text)) for text in texts], ""
    pool = [word for text in words for word in text]
    order = iter(np.random.default_rng(0).permutation(len(pool)))
    drawn = [between.join(pool[next(order)] for _ in text) for text in words]
    return [text if text.strip() else "." for text in drawn]
