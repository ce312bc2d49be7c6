"""The main job: from a log to a judged sparse router. No printing, no files: it returns what
report, plot and router are made of.
"""

import concurrent.futures
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import threadpoolctl

from jaxsac import control
from jaxsac.route import baselines, evaluate, split
from jaxsac.route.features import Features, fit_features, transform
from jaxsac.route.log_file import LogError, RouteLog, Tool, log_hash
from jaxsac.route.ridge import RidgeFit, fit_ridge, tune_ridge
from jaxsac.route.router import Router
from jaxsac.route.sparse import SparseFit, fit_sparse

RESAMPLES = 10  # half samples of the diagnosis
RIDGE = 1e-2  # where the tuning of ridges starts; features have mean square 1


class Earlier(NamedTuple):
    """A router to start from, the penalty that chose its tools, and how many training records it
    had.
    """

    router: Router
    lam: float
    records: int


class Options(NamedTuple):
    """`budget` None: the 95th percentile of the set sizes. `lam`: "validation", "simulated" or a
    number. `keep`: at most so many kept tools (for lam = "validation"). `size`: text features.
    `curve`: numbers of training records for the learning curve, () for none. `seed`: of the
    learning curve's subsets and the simulation. `processes` > 1: the smaller training sets in a
    process of their own (spawned, so a script needs the usual `if __name__ == "__main__"`).
    `diagnose`: judge the sparse policy by `control.diagnose` too. `family_share`: of the penalty
    that is on the families of tools, where the tools file names some (see `control.fit`).
    `earlier`: keep its features, start from its parameters, at its penalty times sqrt(its records /
    the records now); `lam` is ignored.
    """

    budget: int | None = None
    lam: str | float = "validation"
    keep: int = 200
    size: int = 128
    curve: tuple[int, ...] = (800, 2000)
    seed: int = 0
    processes: int = 1
    diagnose: bool = False
    family_share: float = 0.5
    earlier: Earlier | None = None


DEFAULTS = Options()


class Result(NamedTuple):
    """`summary`: plain numbers and texts (JSON); `router`: what is deployed; `diagnosis` (if asked
    for) with the `names` of its tools.
    """

    summary: dict[str, Any]
    router: Router
    diagnosis: control.Diagnosis | None = None
    names: tuple[str, ...] = ()


class Judged(NamedTuple):
    """Held-out records: feature rows [n, q], sets int32 [n, B] (M and above: tools unseen here),
    groups, and the contexts for retrieval.
    """

    features: np.ndarray
    actions: np.ndarray
    groups: list[str]
    contexts: list[str] | np.ndarray


class Fold(NamedTuple):
    """One training set: its catalogue of M tools, features [T, q], sets int32 [T, B], the records
    to judge on, and the tools' families int [M] (-1: none; None where no tool has one).
    """

    names: list[str]
    features: Features
    rows: np.ndarray
    actions: np.ndarray
    contexts: list[str] | np.ndarray
    validation: Judged
    test: Judged
    families: np.ndarray | None


Show = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""A progress bar: `show(items, total, label)` gives the items back."""


def run(
    log: RouteLog, options: Options = DEFAULTS, show: Show = lambda items, total, label: items
) -> Result:
    """Learn a sparse router from `log` and judge it on held-out groups against a dense policy,
    popularity and text retrieval.

    Raises LogError for logs that cannot be split or hold no tools.
    """
    times: dict[str, float] = {}
    num_records, num_tools = len(log.sets), len(split.catalogue(log))
    if num_tools == 0:
        raise LogError("no record uses a tool: there is nothing to route to.")
    uses = np.unique([name for tools in log.sets for name in tools], return_counts=True)[1]
    budget = split.default_budget(log) if options.budget is None else options.budget
    kept_log = split.within_budget(log, budget)
    if not kept_log.sets:
        raise LogError(f"every record uses more than --budget {budget} tools: raise it.")
    parts = split.split(kept_log)
    full = split.catalogue(parts.training)
    subsets = split.nested_subsets(len(parts.training.sets), options.curve, options.seed)
    curve, fold, sparse = _train_all(_Task(log, parts, full, budget, options), subsets, times, show)
    test_uses = [name for tools in parts.test.sets for name in tools]
    known = set(full)
    summary = {
        "log": log.notes
        | {
            "hash": log_hash(log),
            "records": num_records,
            "tools": num_tools,
            "tools_used_once": int((uses == 1).sum()),
        }
        | {
            "budget": budget,
            "longer_records_dropped": num_records - len(kept_log.sets),
            "described": sum(bool(tool.description) for tool in log.tools.values()),
        },
        "split": {name: len(part.sets) for name, part in zip(parts._fields, parts, strict=True)}
        | {
            f"{name}_groups": len(set(part.groups))
            for name, part in zip(parts._fields, parts, strict=True)
        }
        | {
            "tools_seen_in_training": len(full),
            "test_records_judged": len(fold.test.groups),
            "test_uses": len(test_uses),
        }
        | {"test_uses_of_unseen_tools": sum(name not in known for name in test_uses)},
        "kept": kept_tools(sparse, fold, log),
        "certificate": sparse.certificate,
        "result": curve[-1],
        "learning_curve": curve,
        "seconds": times,
    }
    pruned = sparse.policy.pruned()
    names = [fold.names[tool] for tool in np.asarray(pruned.tools)]
    router = Router(
        names, fold.features, pruned, [log.tools.get(name, Tool()).cost for name in names]
    )
    diagnosis = None
    if options.diagnose:
        with _clock(times, "diagnosis"):
            shared = (
                {}
                if fold.families is None
                else {"families": fold.families, "family_share": options.family_share}
            )
            training = control.Log(fold.rows, fold.actions)
            diagnosis = control.diagnose(
                control.Task(training, len(fold.names), budget, **shared),
                sparse.penalised,
                key=jax.random.key(options.seed),
                lam=sparse.certificate["lam"],
                num_resamples=RESAMPLES,
            )
    return Result(summary, router, diagnosis, tuple(fold.names))


def kept_tools(sparse: SparseFit, fold: Fold, log: RouteLog) -> list[dict[str, Any]]:
    """The kept tools, strongest first: root mean square of <theta_j, psi> over the training
    contexts (nats), 0 without theta_j.
    """
    uses = np.bincount(fold.actions[fold.actions >= 0], minlength=len(fold.names))
    result = sparse.scores
    spread = np.sqrt(np.mean((fold.rows @ result.weights.T) ** 2, axis=0))
    strength = dict(zip(result.support.tolist(), spread.tolist(), strict=True))
    kept = sorted(
        np.asarray(sparse.policy.kept).tolist(),
        key=lambda tool: (-strength.get(tool, 0.0), -uses[tool]),
    )
    rows = []
    for tool in kept:
        name = fold.names[tool]
        about = log.tools.get(name, Tool())
        row = {
            "tool": name,
            "strength": strength.get(tool, 0.0),
            "intercept": float(result.intercept[tool]),
            "uses": int(uses[tool]),
        }
        rows.append(
            row
            | {
                "by": "context" if tool in strength else "intercept",
                "cost": about.cost,
                "family": about.family,
            }
        )
    return rows


class _Task(NamedTuple):
    log: RouteLog
    parts: split.Parts
    full: list[str]
    budget: int
    options: Options


def _train_all(
    task: _Task, subsets: list[np.ndarray], times: dict[str, float], show: Show
) -> tuple[list[dict[str, Any]], Fold, SparseFit]:
    """The learning curve's points, and what the router is made of, which is learned on the last
    subset.

    With `processes` > 1 a second process takes the smaller subsets meanwhile (not on a GPU, whose
    memory one process claims).
    """
    beside = task.options.processes > 1 and len(subsets) > 1 and jax.default_backend() == "cpu"
    context = multiprocessing.get_context("spawn")
    start = (jax.dtypes.canonicalize_dtype(float) == np.float64,)
    with (
        concurrent.futures.ProcessPoolExecutor(1, context, _start_process, start)
        if beside
        else contextlib.nullcontext() as pool,
        threadpoolctl.threadpool_limits(
            1, "blas"
        ),  # threads that wait for a busy core spin: two processes were 20 times slower
    ):
        waiting = (
            [pool.submit(_train_smaller, task, subset) for subset in subsets[:-1]] if pool else []
        )
        points, whole = [], []

        def work() -> Iterator[None]:
            whole.append(_train(task, subsets[-1], times))
            yield
            for number, subset in enumerate(subsets[:-1]):
                with _clock(times, "smaller training sets"):
                    points.append(
                        waiting[number].result() if pool else _train_smaller(task, subset)
                    )
                yield

        for _ in show(work(), len(subsets), "training sets"):
            pass
    ((point, fold, sparse),) = whole
    return [*points, point], fold, sparse


def _start_process(x64: bool) -> None:
    jax.config.update("jax_enable_x64", x64)
    threadpoolctl.threadpool_limits(1, "blas")


def _train_smaller(task: _Task, subset: np.ndarray) -> dict[str, Any]:
    return _train(task, subset, {})[0]


def _train(
    task: _Task, subset: np.ndarray, times: dict[str, float]
) -> tuple[dict[str, Any], Fold, SparseFit]:
    """All methods on the training records `subset`, judged: a point of the learning curve, and what
    the router is made of.
    """
    log, parts, full, budget, options = task
    with _clock(times, "features"):
        fold = _fold(parts, parts.training.take(subset), full, budget, options)
    methods, tuning, sparse = _learn(fold, budget, options, times)
    if len(subset) == len(parts.training.sets) and isinstance(fold.contexts, list):
        with _clock(times, "retrieval"):
            descriptions = [log.tools.get(name, Tool()).description for name in fold.names]
            found, choice = _retrieval(fold, descriptions, methods["popularity"], budget)
        methods, tuning = methods | found, tuning | choice
    with _clock(times, "evaluation"):
        point = (
            {"records": len(subset), "tools": len(fold.names)}
            | _judge(fold, methods, budget)
            | {"tuning": tuning}
        )
    return point, fold, sparse


def _fold(
    parts: split.Parts, training: RouteLog, full: list[str], budget: int, options: Options
) -> Fold:
    names = split.catalogue(training)
    features = (
        fit_features(training.contexts, options.size)
        if options.earlier is None
        else options.earlier.router.features
    )
    ordered = names + sorted(set(full) - set(names))

    def judged(part: RouteLog) -> Judged:
        actions = split.action_table(part, ordered, budget)
        part, actions = (
            part.take(np.flatnonzero((actions >= 0).any(axis=1))),
            actions[(actions >= 0).any(axis=1)],
        )
        if not part.sets:
            raise LogError(
                "no held-out record uses a tool that the training records use: give more records, or coarser tools."
            )
        return Judged(transform(features, part.contexts), actions, part.groups, part.contexts)

    rows, actions = (
        transform(features, training.contexts),
        split.action_table(training, names, budget),
    )
    return Fold(
        names,
        features,
        rows,
        actions,
        training.contexts,
        judged(parts.validation),
        judged(parts.test),
        _families(names, training),
    )


def _families(names: list[str], log: RouteLog) -> np.ndarray | None:
    named = [log.tools.get(name, Tool()).family for name in names]
    numbers = {family: number for number, family in enumerate(sorted(set(named) - {""}))}
    return np.array([numbers.get(family, -1) for family in named]) if numbers else None


def _learn(
    fold: Fold, budget: int, options: Options, times: dict[str, float]
) -> tuple[dict[str, RidgeFit], dict[str, Any], SparseFit]:
    """Popularity, the dense and the sparse policy of one training set; the last two tuned by the
    validation records' log-likelihood.
    """
    size = len(fold.names)

    def quality(scores: Callable[[np.ndarray], np.ndarray]) -> float:
        judged = fold.validation
        return float(
            np.nanmean(evaluate.log_likelihood(scores(judged.features), judged.actions, budget))
        )

    with _clock(times, "popularity"):
        popularity = baselines.fit_popularity(fold.rows, fold.actions, size, budget)
    with _clock(times, "dense policy"):

        def dense_fit(ridge: float, start: RidgeFit | None) -> RidgeFit:
            return fit_ridge(
                fold.rows, fold.actions, size, budget, ridge, start=start or popularity
            )

        dense, tried = tune_ridge(dense_fit, quality, first=RIDGE)
    with _clock(times, "sparse policy"):
        key = jax.random.key(options.seed)
        limits: dict[str, Any] = {"lam": options.lam, "keep": options.keep, "ridge": RIDGE}
        limits |= {"families": fold.families, "family_share": options.family_share}
        if options.earlier is not None:
            limits |= {
                "lam": options.earlier.lam
                * float(np.sqrt(options.earlier.records / len(fold.rows))),
                "start": _start(options.earlier, fold),
            }
        sparse = fit_sparse(key, fold.rows, fold.actions, size, budget, quality=quality, **limits)
    methods = {"sparse": sparse.scores, "dense": dense, "popularity": popularity}
    counts = {"kept": int(sparse.policy.kept.size), "support": int(sparse.policy.support.size)}
    return methods, {"dense": tried, "sparse": sparse.tried} | counts, sparse


def _start(earlier: Earlier, fold: Fold) -> control.FitState:
    """The earlier router's parameters in this catalogue; tools that it does not know start at their
    frequency.
    """
    policy, place = earlier.router.policy, {name: number for number, name in enumerate(fold.names)}
    uses = np.bincount(fold.actions[fold.actions >= 0], minlength=len(fold.names))
    rate = np.clip(uses / len(fold.rows), 1e-9, 0.9)
    intercept = np.log(rate) - np.log1p(-rate)
    numbers = np.array([place.get(name, -1) for name in earlier.router.names], int)
    known = numbers >= 0
    intercept[numbers[known]] = np.asarray(policy.intercept)[known]
    positions = np.asarray(policy.positions)
    tools = numbers[positions]
    order = np.argsort(tools[tools >= 0], kind="stable")
    return control.FitState(
        tools[tools >= 0][order], np.asarray(policy.coef, float)[tools >= 0][order], intercept
    )


def _retrieval(
    fold: Fold, descriptions: list[str], popularity: RidgeFit, budget: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Retrieval at its best setting, alone and as a policy on top of popularity: z = scale * cosine
    + popularity's intercepts.
    """

    def cosines_of(judged: Judged, choice: dict[str, Any]) -> np.ndarray:
        assert isinstance(fold.contexts, list) and isinstance(judged.contexts, list)
        return baselines.retrieval(fold.names, descriptions, fold.contexts, choice).scores(
            judged.contexts
        )

    tried = []
    for choice in baselines.RETRIEVAL_CHOICES:
        cosines = cosines_of(fold.validation, choice)
        scales = {
            scale: _mean_ndcg(scale * cosines + popularity.intercept, fold.validation, budget)
            for scale in baselines.RETRIEVAL_SCALES
        }
        scale = max(scales, key=lambda scale: scales[scale])
        tried.append(
            choice
            | {
                "validation": _mean_ndcg(cosines, fold.validation, budget),
                "scale": scale,
                "with_popularity": scales[scale],
            }
        )
    alone, mixed = (
        max(tried, key=lambda row: row["validation"]),
        max(tried, key=lambda row: row["with_popularity"]),
    )
    with_popularity = mixed["scale"] * cosines_of(fold.test, mixed) + popularity.intercept
    scores = {"retrieval": cosines_of(fold.test, alone), "retrieval + popularity": with_popularity}
    return scores, {"retrieval": tried}


def _judge(fold: Fold, methods: dict[str, Any], budget: int) -> dict[str, Any]:
    """Every method on the test records, and the paired differences that matter."""
    measured = {}
    for name, method in methods.items():
        scores = method.scores(fold.test.features) if isinstance(method, RidgeFit) else method
        measured[name] = evaluate.measure(
            scores, fold.test.actions, budget, policy=name != "retrieval"
        )
    pairs = [("sparse", other) for other in measured if other != "sparse"] + [
        ("dense", "popularity")
    ]
    return {
        "methods": {
            name: evaluate.summarise(values, fold.test.groups) for name, values in measured.items()
        },
        "differences": {
            f"{a} - {b}": evaluate.compare(measured[a], measured[b], fold.test.groups)
            for a, b in pairs
        },
    }


def _mean_ndcg(scores: np.ndarray, judged: Judged, budget: int) -> float:
    return float(evaluate.measure(scores, judged.actions, budget, policy=False).ndcg.mean())


@contextlib.contextmanager
def _clock(times: dict[str, float], label: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[label] = times.get(label, 0.0) + time.perf_counter() - start
