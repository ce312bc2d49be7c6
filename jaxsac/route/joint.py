"""The router's policy: text channels, nearest records and sparse coefficients in one fit, its
penalty chosen on validation records.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import control
from jaxsac.route import evaluate, outcomes, split
from jaxsac.route.content import Content, Weights
from jaxsac.route.deployed import Router
from jaxsac.route.embeddings import fit_embedded
from jaxsac.route.fold import families_of, worth_of
from jaxsac.route.log_file import RouteLog, Tool
from jaxsac.route.reading import Reading, Vectors
from jaxsac.route.regression import fit_regression, out_of_fold, uses, weighed
from jaxsac.route.sparse import best_within
from jaxsac.route.texts import fit_vocabulary, index_of, matrix_of_vectors
from jaxsac.solution import Solution, Status

# Of the penalty on norms, that on half their squares. It shrinks little more, and the duality gap,
# finite at any gradient then, is small in a fourth of the steps.
_RIDGE = 0.02
_LAMS = (0.03, 0.01, 4e-3, 1.6e-3, 6e-4, 2.5e-4, 1e-4)
_FOLDS = 5
_TOLERANCE = 1e-2  # of the chosen fit
_PATH_TOLERANCE = 5e-2  # of those it is chosen from
_PATH_RECORDS = 2048  # at most, in those
_ANCHORS = 2048  # records at most whose similarities are the features
_LENGTH = 4.0  # of a vector of features, nearly
_WEAK = 1e-3  # of the largest possible similarity: directions of less are left out


class JointFit(NamedTuple):
    """The chosen fit: what reads texts, the policy over the whole catalogue, its certificate."""

    names: list[str]  # of the tools [M], those of the training records first
    reading: Reading
    directions: np.ndarray  # [m, q]: from similarities to the anchors to the policy's features
    policy: control.JointPolicy
    exactly: bool
    strengths: np.ndarray  # root mean squares of ⟨θ_j, ψ⟩ over the records, of the support [k]
    certificate: dict[str, Any]
    tried: list[dict[str, Any]]


def read_log_texts(
    training: RouteLog, names: list[str], tools: dict[str, Tool]
) -> tuple[Reading, list[Vectors]]:
    """The reading of training texts, and their vectors."""
    texts = list(training.contexts)
    about = [tools.get(name, Tool()).text(name) for name in names]
    vocabularies = tuple(fit_vocabulary(kind, about, texts) for kind in ("words", "pieces"))
    vectors = [[vocabulary.vector(text) for text in texts] for vocabulary in vocabularies]
    tool_vectors = [[vocabulary.vector(text) for text in about] for vocabulary in vocabularies]
    counts = [len(vocabulary.number) for vocabulary in vocabularies]
    name_vectors = [vocabularies[0].vector(name) for name in names]
    position = {name: number for number, name in enumerate(names)}
    used = [position[name] for tools_of in training.sets for name in tools_of]
    anchors = np.random.default_rng(0).permutation(len(texts))[:_ANCHORS]
    first, used = np.cumsum([0, *map(len, training.sets)]), np.array(used, np.int32)
    worth = np.asarray(worth_of(training.utilities), np.float32)
    rows = matrix_of_vectors(vectors[0], counts[0]), uses(first, used, len(names))
    reading = Reading(
        vocabularies,  # pyright: ignore[reportArgumentType]
        tuple(map(index_of, tool_vectors, counts)),  # pyright: ignore[reportArgumentType]
        index_of(name_vectors, counts[0]),
        fit_regression(*(weighed(one, worth) for one in rows)),
        tuple(map(index_of, vectors, counts)),  # pyright: ignore[reportArgumentType]
        first,
        used,
        worth,
        np.sort(anchors),
    )
    if training.embeddings is not None:
        known = [tools.get(name, Tool()).embedding for name in names]
        reading = reading._replace(embedded=fit_embedded(training.embeddings, known))
    embedded = [None] * len(texts) if reading.embedded is None else reading.embedded.records
    return reading, [Vectors(*one) for one in zip(*vectors, embedded, strict=True)]


def _directions(similar: np.ndarray, size: int, kinds: int) -> np.ndarray:
    """From the anchors' similarities to each other [m, m], a kernel, to the `size` largest of its
    features, [m, q] (Nyström's method, Williams & Seeger 2001); a column of zeros if it has none.
    """
    values, vectors = np.linalg.eigh(similar.astype(np.float64))
    first = np.argsort(-values)[: min(size, int((values > kinds * _WEAK).sum()))]
    if not first.size:
        return np.zeros((len(similar), 1), np.float32)
    return (vectors[:, first] * (_LENGTH / np.sqrt(kinds * values[first]))).astype(np.float32)


def fit_policy(
    training: RouteLog,
    judged: RouteLog,
    catalogue: list[str],
    budget: int,
    size: int,
    *,
    lam: str | float = "validation",
    keep: int | None = None,
    family_share: float = 0.0,
    seed: int = 0,
    tell: Callable[[str], Any] = str,
) -> JointFit:
    """The fit on training records of texts over all tools of `catalogue`.

    The scores are stretched (`evaluate.stretch`) to the records `judged`: contexts unlike those of
    the fit are known less well than it believes.

    * `lam`: "validation", the largest penalty within one standard error of the best by the
      log-likelihood of the records `judged` (Breiman, Friedman, Olshen & Stone 1984);
      "simulated" (`control.simulated_lam`, which `seed` is for), or a number.
    * `keep`: where validation leaves more tools with θ, the best penalty that leaves 1 to so many
      (`best_within`); None: no bound.
    * `family_share`: of the penalty, on the families of the tools.
    * `tell`: is told what the fit is at.
    """
    tell("router: reading texts")
    reading, vectors = read_log_texts(training, catalogue, training.tools)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(training.groups):
        members.setdefault(group, []).append(row)
    apart = [np.array(members[group]) for group in training.groups]
    similar, values = _look(reading, vectors, apart)
    directions = _directions(similar[reading.anchors], size, reading.kinds)
    order = np.random.default_rng(0).permutation(len(members))
    fold_of = {group: order[number] % _FOLDS for number, group in enumerate(members)}
    fold = np.array([fold_of[group] for group in training.groups])
    words = matrix_of_vectors([one.words for one in vectors], reading.taught.start.size - 1)
    used = uses(reading.first, reading.used, len(catalogue))
    values[:, reading.kinds + 1] = out_of_fold(words, used, reading.worth, fold)
    contexts = similar @ directions
    exactly = all(len(tools) == budget for tools in training.sets)
    available = split.shown_table(training, catalogue)
    table = split.action_table(training, catalogue, budget)
    objective = "weighted" if np.ptp(training.utilities) > 0 else "imitation"
    families = families_of(catalogue, training.tools) if family_share else None
    together = {"families": families, "family_share": family_share}

    def problem(rows: Any) -> tuple[control.Task, control.Channels]:
        shown = None if available is None else available[rows]
        log = control.Log(contexts[rows], table[rows], training.utilities[rows], available=shown)
        task = control.Task(log, len(catalogue), budget, objective, **together)
        own = np.swapaxes(values[rows], 0, 1)
        return task, control.Channels(own, learnt=reading.learnt, fold=fold[rows])

    held_out = split.action_table(judged, catalogue, budget)
    read = _read(reading, judged.contexts, judged.embeddings)
    similar, beside = _look(reading, read)
    psi = similar @ directions

    def fit(made: tuple, lam: float, state: Any, tol: float) -> Solution:
        given: dict[str, Any] = {"ridge": _RIDGE * lam, "exactly": exactly, "max_steps": 120}
        return control.fit_joint(*made, lam=lam, tol=tol, state=state, **given)

    tried: list[dict[str, Any]] = []

    def judge(found: Solution) -> tuple[np.ndarray, control.JointPolicy]:
        """The log-likelihoods of the records `judged`, and the policy stretched to them."""
        z = np.asarray(jax.vmap(found.value.scores)(psi, beside))
        z = evaluate.masked(z, split.shown_table(judged, catalogue))
        slope, constant = evaluate.stretch(z, held_out, budget, exactly=exactly)
        stretched = slope * z + constant
        values = evaluate.log_likelihood(stretched, held_out, budget, exactly=exactly)
        mean, support = float(np.nanmean(values)), int(found.value.support.size)
        tell(f"router: {support} tools, validation {mean:.3f}")
        row = {"lam": float(found.stats["lam"]), "validation": mean, "support": support}
        tried.append(row | {"steps": int(found.stats["num_steps"])})
        return values, _stretched(found.value, slope, constant)

    def quality(found: Solution) -> float:
        return float(np.nanmean(judge(found)[0]))

    count = len(training.sets)
    whole = part = problem(slice(None))
    validated = lam == "validation"
    if lam == "simulated":
        lam = float(control.simulated_lam(jax.random.key(seed), whole[0]))
    elif validated and count > _PATH_RECORDS:
        part = problem(np.random.default_rng(1).permutation(count)[:_PATH_RECORDS])
    lams: Any = _LAMS if validated else (lam,)

    def along(lam: float, state: Any) -> Solution:
        return fit(part, lam, state, _PATH_TOLERANCE)

    lam, state = _sparsest(lams, along, lambda found: judge(found)[0], judged.groups)
    # Noise falls as the root of the number of records.
    lam = float(lam * np.sqrt(part[0].num_records / count))
    final = fit(whole, lam, state, _TOLERANCE)
    if validated and keep is not None and final.value.support.size > keep:

        def again(lam: float, state: Any) -> Solution:
            return fit(whole, lam, state, _TOLERANCE)

        final = best_within(keep, float(final.stats["lam_max"]), again, quality)
    policy = judge(final)[1]
    stats = {name: float(final.stats[name]) for name in ("lam", "lam_max", "gap", "scale")}
    stats |= {"relative_gap": stats["gap"] / stats["scale"]}
    if stats["lam_max"] > 0:  # more changes nothing, and would keep tools out of an update
        stats["lam"] = min(stats["lam"], stats["lam_max"])
    certificate = stats | {
        "status": Status(int(final.status)).name,
        "family_share": 0.0 if families is None else family_share,
    }
    spread = np.sqrt(np.mean((contexts @ np.asarray(policy.coef).T) ** 2, axis=0))
    made = list(catalogue), reading, directions, policy, exactly
    return JointFit(*made, spread, certificate, tried)


def _sparsest(
    lams: Sequence[float],
    fit: Callable[[float, Any], Solution],
    judge: Callable[[Solution], np.ndarray],
    groups: Sequence[str],
) -> tuple[float, Solution]:
    """The largest of falling penalties that is worse than the best by at most one standard error of
    the paired difference, by groups, and its fit; none is tried beyond the first that is worse
    by more.

    * `fit`: `fit(lam, fit before)`.
    * `judge`: gives log-likelihoods of the records that the `groups` are of.
    """
    path: list[tuple[float, Solution, np.ndarray]] = []
    best: Any = None
    state: Any = None

    def no_worse(values: np.ndarray) -> bool:
        less = evaluate.summary(best[2] - values, list(groups))
        return less["mean"] <= np.nan_to_num(less["error"])

    for lam in lams:
        state = fit(lam, state)
        path.append((lam, state, judge(state)))
        best = max(path, key=lambda one: float(np.nanmean(one[2])))
        # Without θ two penalties differ by the tolerance alone.
        if state.value.support.size and not no_worse(path[-1][2]):
            break
    return next((lam, found) for lam, found, values in path if no_worse(values))


def _stretched(policy: control.JointPolicy, slope: float, constant: float) -> control.JointPolicy:
    """The policy of the scores slope · z + constant."""
    scaled = {name: slope * getattr(policy, name) for name in ("coef", "weights", "intercept")}
    scaled["intercept"] += constant
    return dataclasses.replace(policy, **scaled)


def _read(reading: Reading, texts: Sequence[str] | np.ndarray, embeddings: Any) -> list[Vectors]:
    given = [None] * len(texts) if embeddings is None else embeddings
    return [reading.vectors(*one) for one in zip(texts, given, strict=True)]


def scores(
    found: JointFit, texts: Sequence[str] | np.ndarray, embeddings: np.ndarray | None = None
) -> np.ndarray:
    """z [n, M] of all tools for n texts, and their embeddings [n, d]."""
    similar, channels = _look(found.reading, _read(found.reading, texts, embeddings))
    policy: Any = found.policy
    return np.asarray(jax.vmap(policy.scores)(similar @ found.directions, channels))


def _look(
    reading: Reading, vectors: list[Vectors], left_out: list[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of n texts to the anchors [n, m], and their channels [n, C, M], for which the
    records `left_out` of a text do not count.
    """
    similar = np.zeros((len(vectors), reading.anchors.size), np.float32)
    found = np.zeros((len(vectors), len(reading.channel_names), reading.names.size), np.float32)
    for row, (about, near) in enumerate(reading.cosines(vectors)):
        similar[row] = reading.similarities(near)
        if left_out is not None:
            near[:, left_out[row]] = 0
        found[row] = reading.channels(about, near)
    return similar, found


def deployed(found: JointFit, judged: RouteLog, tools: dict[str, Tool]) -> Router:
    """The router that is saved, its probabilities calibrated on the validation records."""
    policy = found.policy
    weights = Weights(
        channels=np.asarray(policy.weights, np.float32),
        tools=np.asarray(policy.positions),
        coef=np.asarray(policy.coef) @ found.directions.T,
        intercept=np.asarray(policy.intercept, np.float32),
        cold=np.asarray(policy.cold) > 0,
        calibration=np.array([1.0, 0.0]),
        budget=policy.budget,
        exactly=found.exactly,
    )
    costs = [tools.get(name, Tool()).cost for name in found.names]
    content = Content(found.names, costs, found.reading, weights)
    found_here = outcomes.answers(Router(content), judged)
    shown, used = outcomes.shown_and_used(found_here, judged.sets)
    calibration = _calibration(np.log(shown) - np.log1p(-shown), used)
    return Router(content._replace(weights=weights._replace(calibration=calibration)))


def summary(found: JointFit) -> dict[str, Any]:
    """What was learnt, in numbers."""
    weights = np.asarray(found.policy.weights, float).tolist()
    return {
        "tools": len(found.names),
        "tools_without_records": int(np.sum(np.asarray(found.policy.cold) > 0)),
        "support": int(found.policy.support.size),
        "channels": dict(zip(found.reading.channel_names, weights, strict=True)),
    }


def _calibration(odds: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Slope and constant of the logistic regression of `used` on log odds, near (1, 0): Platt 1999,
    by Newton's steps.
    """
    rows, point = np.stack([odds, np.ones(odds.size)]), np.array([1.0, 0.0])
    ridge, start = np.eye(2), point
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(point @ rows, -30, 30)))
        gradient = rows @ (p - used) + ridge @ (point - start)
        step = np.linalg.solve((rows * (p * (1 - p))) @ rows.T + ridge, gradient)
        point = point - step * min(1.0, 1 / float(np.linalg.norm(step) + 1e-12))
    return np.array([max(point[0], 1e-3), point[1]])
