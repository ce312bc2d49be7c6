"""The main job: from a log to a judged sparse router. No printing, no files: it returns what
report, plot and router are made of.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import control
from jaxsac.route import baselines, deployed as agents, evaluate, joint, outcomes, split
from jaxsac.route.features import NumberFeatures, fit_features
from jaxsac.route.fold import Fold, make_fold
from jaxsac.route.log_file import LogError, RouteLog, Tool, log_hash
from jaxsac.route.progress import Stages, bar
from jaxsac.route.ridge import RidgeFit, fit_ridge, tune_ridge
from jaxsac.route.router import Router
from jaxsac.route.sparse import SparseFit, fit_sparse
from jaxsac.route.value import value

_RESAMPLES = 10  # half samples of the diagnosis
_RIDGE = 1e-2  # where the tuning of ridges starts; features have mean square 1


class Earlier(NamedTuple):
    """An earlier run.

    * `lam`: the penalty that chose its tools.
    * `records`: the number of its training records.
    * `texts`: whether its contexts were texts.
    """

    lam: float
    records: int
    texts: bool


class Options(NamedTuple):
    """How to learn and what to judge.

    * `budget`: tools in a set; None: the 95th percentile of the set sizes.
    * `lam`: "validation", "simulated" or a number > 0.
    * `keep`: at most so many tools look at the context (with `lam="validation"`); None: no bound.
    * `size`: number of text features of the dense policy; the router of a log of texts has eight
      times as many.
    * `curve`: numbers of training records for the learning curve, () for none.
    * `seed`: of the learning curve's subsets and of the simulation.
    * `processes`: above 1, the smaller training sets go to a process of their own (spawned, so a
      script needs the usual `if __name__ == "__main__"`).
    * `diagnose`: judge the sparse policy of the features by `control.diagnose` too.
    * `family_share`: share of the penalty on the families of tools, in [0, 1), where the tools file
      names some (see `control.fit`).
    * `earlier`: fit at its penalty times √(its records / the records now); `lam` is ignored.
    """

    budget: int | None = None
    lam: str | float = "validation"
    keep: int | None = None
    size: int = 128
    curve: tuple[int, ...] = (800, 2000)
    seed: int = 0
    processes: int = 1
    diagnose: bool = False
    family_share: float = 0.0
    earlier: Earlier | None = None

    def penalty(self, records: int) -> str | float:
        """For so many training records."""
        if self.earlier is None:
            return self.lam
        return self.earlier.lam * float(np.sqrt(self.earlier.records / records))


class Result(NamedTuple):
    """What a run finds.

    * `summary`: plain numbers and texts (JSON).
    * `router`: what an agent calls, for logs of texts; for numbers the sparse policy over its
      features, pruned.
    * `diagnosis`: of the sparse policy, where it was asked for.
    * `names`: of the tools in the diagnosis.
    """

    summary: dict[str, Any]
    router: Router | agents.Router
    diagnosis: control.Diagnosis | None = None
    names: tuple[str, ...] = ()


class _Job(NamedTuple):
    """What every training set shares: the log, its parts, the training catalogue, the budget."""

    log: RouteLog
    parts: split.Parts
    catalogue: list[str]
    budget: int
    options: Options


def run(log: RouteLog, options: Options | None = None, *, progress: bool = False) -> Result:
    """Learn a sparse router from `log` and judge it on held-out groups against a dense policy,
    popularity and text retrieval. For texts it is a joint fit (`jaxsac.route.joint`), for numbers
    the sparse policy of `control.fit`, refitted.

    * `progress`: a bar on stderr.

    Raises: LogError for logs that cannot be split or hold no tools.
    """
    options = options or Options()
    texts = isinstance(log.contexts, list)
    if options.earlier is not None and options.earlier.texts != texts:
        here, there = ("texts", "numbers") if texts else ("numbers", "texts")
        raise LogError(
            f"--update: the contexts of the earlier run are {there}, those of this log {here}, for"
            " which its penalty means nothing: learn anew without --update."
        )
    names, uses = np.unique(
        np.array([name for tools in log.sets for name in tools], str), return_counts=True
    )
    if not names.size:
        raise LogError("no record uses a tool: there is nothing to route to.")
    budget = split.default_budget(log) if options.budget is None else options.budget
    within = split.within_budget(log, budget)
    if not within.sets:
        raise LogError(f"every record uses more than --budget {budget} tools: raise it.")
    parts = split.split(chose := split.with_choice(within))
    job = _Job(log, parts, split.catalogue(parts.training), budget, options)
    subsets = split.nested_subsets(len(parts.training.sets), options.curve, options.seed)
    about = {
        "hash": log_hash(log),
        "records": len(log.sets),
        "tools": names.size,
        "tools_used_once": int((uses == 1).sum()),
        "budget": budget,
        "longer_records_dropped": len(log.sets) - len(within.sets),
        "records_without_choice_dropped": len(within.sets) - len(chose.sets),
        "described": sum(bool(tool.description) for tool in log.tools.values()),
    }
    count = 4 + 2 * texts + len(subsets) + options.diagnose
    with bar(count, "stages", shown=progress) as shown:
        return _learn(job, subsets, log.notes | about, Stages({}, shown))


def _learn(job: _Job, subsets: list[np.ndarray], about: dict[str, Any], stages: Stages) -> Result:
    log, parts, _, budget, options = job
    curve, fold, found = _train_all(job, subsets, stages)
    seen, test_uses = set(job.catalogue), [name for tools in parts.test.sets for name in tools]
    summary = {
        "log": about | {"objective": fold.objective},
        "split": {name: len(part.sets) for name, part in parts._asdict().items()}
        | {f"{name}_groups": len(set(part.groups)) for name, part in parts._asdict().items()}
        | {
            "tools_seen_in_training": len(seen),
            "test_records_judged": len(fold.test.groups),
            "test_uses": len(test_uses),
            "test_uses_of_unseen_tools": sum(name not in seen for name in test_uses),
        },
        "kept": kept_tools(found, fold, log),
        "certificate": found.certificate,
        "result": curve[-1],
        "learning_curve": curve,
        "seconds": stages.seconds,
    }
    if isinstance(found, joint.JointFit):
        with stages.clock("router"):
            router = joint.deployed(found, parts.validation, log.tools)
            answers = outcomes.answers(router, parts.test)
            judged = outcomes.judge(router, parts.validation, parts.test, answers)
            summary["router"] = joint.summary(found) | judged
            router = outcomes.held_to(router, parts.test, answers)
            z = joint.scores(found, parts.test.contexts, parts.test.embeddings)
            z = evaluate.masked(z, split.shown_table(parts.test, found.names))
            sets = split.action_table(parts.test, found.names, budget)
            judged = value(z, sets, parts.test, budget, exactly=found.exactly)
            summary["router"]["value"] = judged
    else:
        pruned = found.policy.pruned()
        kept = [fold.names[tool] for tool in np.asarray(pruned.tools)]
        costs = [log.tools.get(name, Tool()).cost for name in kept]
        pruned = dataclasses.replace(pruned, budget=budget)
        assert isinstance(fold.features, NumberFeatures)
        router = Router(kept, fold.features, pruned, costs)
    diagnosis = None
    if options.diagnose:
        with stages.clock("diagnosis"):
            sparse = (
                found if isinstance(found, SparseFit) else _sparse_policy(fold, budget, options)
            )
            diagnosis = control.diagnose(
                sparse.task,
                sparse.penalised,
                key=jax.random.key(options.seed),
                lam=sparse.certificate["lam"],
                num_resamples=_RESAMPLES,
            )
    return Result(summary, router, diagnosis, tuple(fold.names))


def kept_tools(
    found: SparseFit | joint.JointFit, fold: Fold, log: RouteLog
) -> list[dict[str, Any]]:
    """The kept tools, strongest first: root mean square of ⟨θ_j, ψ⟩ over the training contexts
    (nats), 0 without θ_j.
    """
    if isinstance(found, joint.JointFit):
        support, spread = np.asarray(found.policy.support), found.strengths
        kept, intercept = support, np.asarray(found.policy.intercept)
    else:
        support, kept = found.scores.support, np.asarray(found.policy.kept)
        spread = np.sqrt(np.mean((fold.rows @ found.scores.coef.T) ** 2, axis=0))
        intercept = found.scores.intercept
    strength = dict(zip(support.tolist(), spread.tolist(), strict=True))
    rows = []
    for tool in kept.tolist():
        about = log.tools.get(fold.names[tool], Tool())
        rows.append(
            {
                "tool": fold.names[tool],
                "strength": strength.get(tool, 0.0),
                "intercept": float(intercept[tool]),
                "uses": int(fold.uses[tool]),
                "by": "context" if tool in strength else "intercept",
                "cost": about.cost,
                "family": about.family,
            }
        )
    return sorted(rows, key=lambda row: (-row["strength"], -row["uses"]))


def _train_all(
    job: _Job, subsets: list[np.ndarray], stages: Stages
) -> tuple[list[dict[str, Any]], Fold, SparseFit | joint.JointFit]:
    """The learning curve's points, and what the router is made of, which is learned on all training
    records.

    With `processes` > 1 a second process takes the smaller training sets meanwhile (not on a GPU,
    whose memory one process claims).
    """
    import threadpoolctl

    *smaller, whole = subsets
    beside = job.options.processes > 1 and smaller and jax.default_backend() == "cpu"
    with contextlib.ExitStack() as stack:
        # Threads that wait for a busy core spin: two processes were 20 times slower.
        stack.enter_context(threadpoolctl.threadpool_limits(1, "blas"))
        pool = stack.enter_context(_second_process()) if beside else None
        waiting = [pool.submit(_train_smaller, job, subset) for subset in smaller] if pool else []
        point, fold, found = _train(job, whole, stages)
        points = []
        for number, subset in enumerate(smaller):
            with stages.clock("smaller training sets"):
                points.append(waiting[number].result() if pool else _train_smaller(job, subset))
    return [*points, point], fold, found


def _second_process() -> concurrent.futures.ProcessPoolExecutor:
    x64 = jax.dtypes.canonicalize_dtype(float) == np.float64
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, context, _start_process, (x64,))


def _start_process(x64: bool) -> None:
    import threadpoolctl

    jax.config.update("jax_enable_x64", x64)
    threadpoolctl.threadpool_limits(1, "blas")


def _train_smaller(job: _Job, subset: np.ndarray) -> dict[str, Any]:
    return _train(job, subset, Stages.unseen())[0]


def _train(
    job: _Job, subset: np.ndarray, stages: Stages
) -> tuple[dict[str, Any], Fold, SparseFit | joint.JointFit]:
    """All methods on the training records `subset`, judged: a point of the learning curve, and what
    the router is made of.
    """
    log, parts, catalogue, budget, options = job
    training = parts.training.take(subset)
    with stages.clock("features"):
        features = fit_features(training.contexts, options.size)
        fold = make_fold(parts, training, catalogue, features, budget)
    methods, tuning = _baselines(fold, budget, stages)
    if isinstance(fold.contexts, list):
        if len(subset) == len(parts.training.sets):
            with stages.clock("retrieval"):
                descriptions = [log.tools.get(name, Tool()).description for name in fold.names]
                popularity = methods["popularity"]
                retrieval, tuning["retrieval"] = baselines.tuned_retrieval(
                    fold, descriptions, popularity, budget
                )
            methods |= retrieval
        with stages.clock("router"):
            names = [*fold.names, *sorted(log.names() - set(fold.names))]
            found = joint.fit_policy(
                training,
                parts.validation,
                names,
                budget,
                8 * options.size,
                lam=options.penalty(len(subset)),
                keep=options.keep,
                family_share=options.family_share,
                seed=options.seed,
                tell=stages.tell,
            )
            scores = joint.scores(found, fold.test.contexts, fold.test.embeddings)
        router, tuning["kept"] = scores[:, : len(fold.names)], int(found.policy.support.size)
    else:
        with stages.clock("router"):
            found = _sparse_policy(fold, budget, options)
        router, tuning["kept"] = found.scores, int(found.policy.kept.size)
    tuning["router"] = found.tried
    with stages.clock("evaluation"):
        judged = _judge(fold, {"router": router} | methods, budget)
    point = {"records": len(subset), "tools": len(fold.names)} | judged | {"tuning": tuning}
    return point, fold, found


def _task(fold: Fold, budget: int, options: Options) -> control.Task:
    log = control.Log(fold.rows, fold.actions, fold.utilities, available=fold.shown)
    families = {"families": fold.families, "family_share": options.family_share}
    return control.Task(log, len(fold.names), fold.beyond(budget), fold.objective, **families)


def _baselines(fold: Fold, budget: int, stages: Stages) -> tuple[dict[str, Any], dict[str, Any]]:
    """Popularity, and the dense policy tuned by the validation records' log-likelihood."""
    budget = fold.beyond(budget)
    data = fold.rows, fold.actions, len(fold.names), budget
    with stages.clock("popularity"):
        popularity = baselines.fit_popularity(*data, fold.weights)

    def fit(ridge: float, start: RidgeFit | None) -> RidgeFit:
        return fit_ridge(*data, ridge, start=start or popularity, weights=fold.weights)

    with stages.clock("dense policy"):
        quality = functools.partial(fold.quality, budget)
        dense, tried = tune_ridge(fit, quality, first=_RIDGE)
    return {"dense": dense, "popularity": popularity}, {"dense": tried}


def _sparse_policy(fold: Fold, budget: int, options: Options) -> SparseFit:
    """The sparse policy over the features of the contexts, tuned as the dense one is. For texts no
    number is its penalty: one that was given belongs to the router's fit.
    """
    key, task = jax.random.key(options.seed), _task(fold, budget, options)
    quality = functools.partial(fold.quality, task.budget)
    lam = options.penalty(len(fold.rows))
    if isinstance(fold.contexts, list) and lam != "simulated":
        lam = "validation"
    return fit_sparse(key, task, quality, lam, options.keep, _RIDGE)


def _judge(fold: Fold, methods: dict[str, Any], budget: int) -> dict[str, Any]:
    """Every method on the test records, and the paired differences that matter."""
    test, measured = fold.test, {}
    for name, method in methods.items():
        scores = method.scores(test.features) if isinstance(method, RidgeFit) else method
        policy = name != "retrieval"
        measured[name] = evaluate.measure(scores, test.actions, budget, policy=policy)
    pairs = [*(("router", name) for name in measured if name != "router"), ("dense", "popularity")]
    return {
        "methods": {
            name: evaluate.summarise(values, test.groups) for name, values in measured.items()
        },
        "differences": {
            f"{a} - {b}": evaluate.compare(measured[a], measured[b], test.groups) for a, b in pairs
        },
    }
