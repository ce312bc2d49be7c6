"""Routers and plain baselines on the same folds of a log: rankings of tools, each method tuned on
validation records.
"""

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse

from benchmarks.harness import run_peer
from jaxsac.route import evaluate, features, joint, log_file, outcomes, ridge, split

DEPTHS = 1, 3, 5, 10
_TEST, _VALIDATION = 0.2, 0.1
_FEATURES = 128
_TIMED = 50  # calls of a router

Scores = tuple[np.ndarray, np.ndarray]  # of the validation and the test records, [n, M]


class Fold(NamedTuple):
    """Parts of a log's records and all tools, those that training records use first."""

    parts: split.Parts
    names: list[str]
    seen: int
    budget: int
    about: list[str]  # texts of the tools

    def table(self, part: log_file.RouteLog) -> np.ndarray:
        """Which tools each record uses, bool [n, M]."""
        place = {name: number for number, name in enumerate(self.names)}
        found = np.zeros((len(part.sets), len(self.names)), bool)
        for row, used in enumerate(part.sets):
            found[row, [place[name] for name in used]] = True
        return found


def folds(log: log_file.RouteLog, count: int) -> list[Fold]:
    """`count` of five folds: each fifth of the groups, in the order of their names' hashes, is the
    test once; the tenth after it is the validation, the rest the training.
    """
    budget = split.default_budget(log)
    log = split.within_budget(log, budget)
    sizes = Counter(log.groups)
    order = sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest())
    start, done = {}, 0
    for group in order:
        start[group], done = done / len(log.groups), done + sizes[group]
    share = np.array([start[group] for group in log.groups])
    found = []
    for number in range(count):
        since = (share - number * _TEST) % 1.0
        test, validation = since < _TEST, (since >= _TEST) & (since < _TEST + _VALIDATION)
        rows = ~(test | validation), validation, test
        parts = split.Parts(*(log.take(np.flatnonzero(one)) for one in rows))
        seen = split.catalogue(parts.training)
        names = [*seen, *sorted(log.names() - set(seen))]
        about = [log.tools.get(name, log_file.Tool()).text(name) for name in names]
        found.append(Fold(parts, names, len(seen), budget, about))
    return found


def measured(scores: np.ndarray, used: np.ndarray, budget: int) -> dict[str, np.ndarray]:
    """Recall at the depths and at the budget, and nDCG at the budget, by record [n]; NaN for
    records without tools. Ties go to the lower number.
    """
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, : max(budget, *DEPTHS)]
    hits, sizes = np.take_along_axis(used, ranked, axis=1), used.sum(axis=1)
    discounts = 1 / np.log2(np.arange(2, budget + 2))
    ideal = np.cumsum(discounts)[np.clip(sizes, 1, budget) - 1]
    found = {f"@{k}": hits[:, :k].sum(axis=1) / np.maximum(sizes, 1) for k in DEPTHS}
    found["@B"] = hits[:, :budget].sum(axis=1) / np.maximum(sizes, 1)
    found["nDCG"] = hits[:, :budget] @ discounts[: hits[:, :budget].shape[1]] / ideal
    return {name: np.where(sizes > 0, values, np.nan) for name, values in found.items()}


def run(fold: Fold, python: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """{method: {scope: measures of the test records}} and the deployed router's figures; a scope is
    "seen" (tools of the training records alone) or "all". Each method's choice is the best by
    validation nDCG in that scope. Where the log has embeddings and `python`, the interpreter of the
    peers, has callbus, its heads and the embeddings alone are two more methods.
    """
    _, validation, test = fold.parts
    uses = fold.table(validation), fold.table(test)
    figures, found = {}, {}
    cache: dict[str, list[Scores]] = {}
    peers = _callbus(fold, python, figures)
    for name, method in (METHODS | peers).items():
        start = time.perf_counter()
        choices = cache[name] = method(fold, cache, figures)
        seconds = figures.pop(f"{name}, seconds", time.perf_counter() - start)
        found[name] = {"seconds": seconds}
        for scope, last in (("seen", fold.seen), ("all", len(fold.names))):
            ndcg = [
                np.nanmean(measured(one[:, :last], uses[0][:, :last], fold.budget)["nDCG"])
                for one, _ in choices
            ]
            best = choices[int(np.argmax(ndcg))][1]
            found[name][scope] = measured(best[:, :last], uses[1][:, :last], fold.budget)
    return found, figures


def _router(fold: Fold, _: Any, figures: dict[str, Any]) -> list[Scores]:
    start = time.perf_counter()
    training, validation, test = fold.parts
    tools = training.tools
    fit = joint.fit_policy(training, validation, fold.names, fold.budget, 8 * _FEATURES)
    router = joint.deployed(fit, validation, tools)
    seconds = time.perf_counter() - start
    calls = []
    for row in range(min(_TIMED, len(test.contexts))):
        embedding = None if test.embeddings is None else test.embeddings[row]
        begin = time.perf_counter()
        router(str(test.contexts[row]), top=10, embedding=embedding)
        calls.append(time.perf_counter() - begin)
    shown, used = outcomes.shown_and_used(outcomes.answers(router, test), test.sets)
    figures |= {
        "fit, seconds": seconds,
        "a call, ms": 1e3 * float(np.median(calls)),
        "calibration error": evaluate.calibration_error(shown, used),
        "its bootstrap error": _calibration_spread(shown, used),
        "relative gap": fit.certificate["relative_gap"],
        "converged": fit.certificate["status"] == "CONVERGED",
        "with theta": int(fit.policy.support.size),
    }
    first, second = (joint.scores(fit, one.contexts, one.embeddings) for one in fold.parts[1:])
    return [(first, second)]


def _calibration_spread(shown: np.ndarray, used: np.ndarray, draws: int = 100) -> float:
    generator = np.random.default_rng(0)
    rows = generator.integers(0, shown.size, (draws, shown.size))
    return float(np.std([evaluate.calibration_error(shown[r], used[r]) for r in rows], ddof=1))


def _popularity(fold: Fold, *_: Any) -> list[Scores]:
    counts = fold.table(fold.parts.training).sum(axis=0).astype(float)
    first, second = (np.tile(counts, (len(part.sets), 1)) for part in fold.parts[1:])
    return [(first, second)]


def _dense(fold: Fold, *_: Any) -> list[Scores]:
    """A ridge-penalised policy over sets on latent features of the text, all tools at once."""
    latent = features.fit_features(fold.parts.training.contexts, _FEATURES)
    rows = [features.transform(latent, part.contexts) for part in fold.parts]
    names = fold.names[: fold.seen]
    tables = [split.action_table(part, names, fold.budget) for part in fold.parts]
    budget = fold.budget + int((tables[0] >= 0).all())

    def quality(scores: ridge.Scores) -> float:
        return float(np.nanmean(evaluate.log_likelihood(scores(rows[1]), tables[1], budget)))

    def fit(value: float, start: Any) -> ridge.RidgeFit:
        return ridge.fit_ridge(rows[0], tables[0], fold.seen, budget, value, start=start)

    best, _tried = ridge.tune_ridge(fit, quality, first=2 / len(rows[0]))
    return [_padded(fold, best.scores(rows[1]), best.scores(rows[2]))]


def _padded(fold: Fold, *scores: np.ndarray) -> Scores:
    """Tools that training never saw come last."""
    width = len(fold.names) - fold.seen
    first, second = (np.pad(one, ((0, 0), (0, width)), constant_values=-1e9) for one in scores)
    return first, second


def _bm25(fold: Fold, *_: Any) -> list[Scores]:
    """Okapi BM25 over the tools' texts, with the idf log(1 + (N − n + ½) / (n + ½)): k1 + 1 times
    the scores of bm25s 0.3's method "lucene" on the same words, to 2e-13 on three logs.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    options: dict[str, Any] = {"analyzer": features.words_of}
    counter: Any = CountVectorizer(**options)
    counts = counter.fit_transform(fold.about).astype(float)
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    number = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log1p((counts.shape[0] - number + 0.5) / (number + 0.5))
    queries = [counter.transform(part.contexts) for part in fold.parts[1:]]
    choices = []
    for k1 in (0.9, 1.5):
        for b in (0.4, 0.75):
            norm = k1 * (1 - b + b * lengths / lengths.mean())
            entries = counts.tocoo()
            value = entries.data * (k1 + 1) / (entries.data + norm[entries.row]) * idf[entries.col]
            weights = sparse.csr_matrix((value, (entries.row, entries.col)), counts.shape)
            choices.append(tuple((one @ weights.T).toarray() for one in queries))
    return choices


def _vectors(fold: Fold, kind: str, with_tools: bool) -> list[Any]:
    """TF-IDF of the three parts' texts and of the tools'."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    options: dict[str, Any] = {"sublinear_tf": True}
    if kind == "words":
        options |= {"token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2)}
        if with_tools:
            options |= {"tokenizer": features.words_of, "token_pattern": None, "lowercase": False}
    else:
        options |= {"analyzer": "char_wb", "ngram_range": (2, 5)}
    known = [*fold.parts.training.contexts, *(fold.about if with_tools else ())]
    vectorizer = TfidfVectorizer(**options).fit(known)
    return [
        vectorizer.transform(texts) for texts in (*(p.contexts for p in fold.parts), fold.about)
    ]


def _retrieval(fold: Fold, *_: Any) -> list[Scores]:
    """Cosines of TF-IDF vectors of words or characters with the tools' texts."""
    found = []
    for kind in ("words", "characters"):
        _, validation, test, tools = _vectors(fold, kind, True)
        found.append(((validation @ tools.T).toarray(), (test @ tools.T).toarray()))
    return found


def _neighbours(fold: Fold, *_: Any) -> list[Scores]:
    """Σ cosine^p over the k nearest records that use a tool."""
    used = sparse.csr_matrix(fold.table(fold.parts.training).astype(float))
    popularity = 1e-9 * np.asarray(used.sum(axis=0))
    found = []
    for kind in ("words", "characters"):
        training, *others, _ = _vectors(fold, kind, False)
        near = [(one @ training.T).toarray() for one in others]
        for k in (5, 20, 50):
            for power in (1, 3):
                found.append(tuple(_nearest(one, k, power) @ used + popularity for one in near))
    return found


def _nearest(near: np.ndarray, k: int, power: int) -> Any:
    k = min(k, near.shape[1])
    best = np.argpartition(-near, k - 1, axis=1)[:, :k]
    weight = np.take_along_axis(near, best, axis=1) ** power
    rows = np.repeat(np.arange(len(near)), k)
    return sparse.csr_matrix((weight.ravel(), (rows, best.ravel())), near.shape).toarray()


def _mixed(fold: Fold, cache: dict[str, list[Scores]], _: Any) -> list[Scores]:
    """kNN + weight · retrieval, either scaled to a largest value of 1 a record."""
    used = fold.table(fold.parts.validation)

    def best(name: str) -> Scores:
        ndcg = [np.nanmean(measured(one[0], used, fold.budget)["nDCG"]) for one in cache[name]]
        first, second = cache[name][int(np.argmax(ndcg))]
        return _scaled(first), _scaled(second)

    near, text = best("kNN"), best("retrieval")
    weights = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    return [(near[0] + w * text[0], near[1] + w * text[1]) for w in weights]


def _scaled(scores: np.ndarray) -> np.ndarray:
    return scores / (np.abs(scores).max(axis=1, keepdims=True) + 1e-12)


def _logistic(fold: Fold, *_: Any) -> list[Scores]:
    """One tool against the rest on TF-IDF of words and pairs or of characters; multinomial where
    every record uses one tool.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    used = fold.table(fold.parts.training)[:, : fold.seen]
    single = bool((used.sum(axis=1) == 1).all())
    found = []
    for kind in ("words", "characters"):
        training, validation, test, _ = _vectors(fold, kind, False)
        for strength in (10.0, 100.0):
            if single:
                model: Any = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
                model.fit(training, used.argmax(axis=1))
            else:
                one = LogisticRegression(C=strength, solver="liblinear")
                model = OneVsRestClassifier(one).fit(training, used.astype(int))
            found.append(_padded(fold, *(model.predict_proba(x) for x in (validation, test))))
    return found


def _callbus(
    fold: Fold, python: str | None, figures: dict[str, Any]
) -> dict[str, Callable[..., list[Scores]]]:
    """Cosines of the log's embeddings, and callbus's heads on them as often as they are trained."""
    training, validation, test = fold.parts
    tools = [training.tools.get(name, log_file.Tool()).embedding for name in fold.names]
    if training.embeddings is None or not all(tools):
        return {}
    arrays = {"training": training.embeddings, "validation": validation.embeddings}
    arrays |= {"test": test.embeddings, "tools": tools, "used": fold.table(training)}
    threads = os.cpu_count() or 1
    found = run_peer("route/callbus", arrays, {"threads": threads}, python=python, threads=threads)
    if not found.ok:
        figures["callbus"] = found.status
        return {}
    alone, *heads = zip(found.arrays["validation"], found.arrays["test"], strict=True)
    figures["callbus, seconds"] = sum(found.numbers["seconds"])
    return {"embeddings alone": lambda *_: [alone], "callbus": lambda *_: [alone, *heads]}


METHODS: dict[str, Callable[..., list[Scores]]] = {
    "router": _router,
    "kNN": _neighbours,
    "retrieval": _retrieval,
    "kNN + retrieval": _mixed,
    "BM25": _bm25,
    "logistic regression": _logistic,
    "dense": _dense,
    "popularity": _popularity,
}


def rows_of(
    results: Sequence[dict[str, Any]], groups: Sequence[str], scope: str
) -> list[dict[str, Any]]:
    """One row a method: means over all folds' test records, with standard errors by groups, and
    the router's paired difference from it.
    """
    found = []
    ours = _joined(results, "router", scope)
    for name in results[0]:
        if any(name not in one for one in results):
            continue  # a peer that did not answer in one fold
        theirs = _joined(results, name, scope)
        row: dict[str, Any] = {"method": name}
        for measure, values in theirs.items():
            mean, error = _summary(values, groups)
            row |= (
                {measure: mean, f"± {measure}": error}
                if measure in ("@B", "nDCG")
                else {measure: mean}
            )
        for measure in ("@B", "nDCG"):
            if name != "router":
                mean, error = _summary(ours[measure] - theirs[measure], groups)
                verdict = "tie" if abs(mean) <= error else "ahead" if mean > 0 else "behind"
                row |= {f"router − it, {measure}": f"{mean:+.3f} ± {error:.3f}, {verdict}"}
        row["seconds a fold"] = float(np.mean([one[name]["seconds"] for one in results]))
        found.append(row)
    return found


def _joined(results: Sequence[dict[str, Any]], name: str, scope: str) -> dict[str, np.ndarray]:
    return {
        measure: np.concatenate([one[name][scope][measure] for one in results])
        for measure in results[0][name][scope]
    }


def _summary(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    kept = ~np.isnan(values)
    if not kept.any():
        return math.nan, math.nan
    names = [group for group, one in zip(groups, kept, strict=True) if one]
    return float(values[kept].mean()), evaluate.cluster_errors(values[kept], names)
