"""The main job: from a log to a judged sparse router. No printing, no files: it returns what
report, plot and router are made of.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsac import control
from jaxsac.route import baselines, deployed as agents, evaluate, joint, outcomes, split
from jaxsac.route.features import fit_features
from jaxsac.route.fold import Fold, Judged, make_fold
from jaxsac.route.log_file import LogError, RouteLog, Tool, log_hash
from jaxsac.route.progress import bar, clock
from jaxsac.route.ridge import RidgeFit, Scores, fit_ridge, tune_ridge
from jaxsac.route.router import Router
from jaxsac.route.sparse import SparseFit, fit_sparse

_RESAMPLES = 10  # half samples of the diagnosis
_RIDGE = 1e-2  # where the tuning of ridges starts; features have mean square 1


class Earlier(NamedTuple):
    """What to start from.

    * `router`: of an earlier run.
    * `lam`: the penalty that chose its tools.
    * `records`: the number of its training records.
    """

    router: Router
    lam: float
    records: int


class Options(NamedTuple):
    """How to learn and what to judge.

    * `budget`: tools in a set; None: the 95th percentile of the set sizes.
    * `lam`: "validation", "simulated" or a number > 0.
    * `keep`: at most so many kept tools (with `lam="validation"`).
    * `size`: number of text features; the deployed router has eight times as many.
    * `curve`: numbers of training records for the learning curve, () for none.
    * `seed`: of the learning curve's subsets and of the simulation.
    * `processes`: above 1, the smaller training sets go to a process of their own (spawned, so a
      script needs the usual `if __name__ == "__main__"`).
    * `diagnose`: judge the sparse policy by `control.diagnose` too.
    * `family_share`: share of the penalty on the families of tools, in [0, 1), where the tools file
      names some (see `control.fit`).
    * `earlier`: keep its features and start from its parameters, at its penalty times √(its
      records / the records now); `lam` is ignored.
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


class Result(NamedTuple):
    """What a run finds.

    * `summary`: plain numbers and texts (JSON).
    * `router`: the sparse policy over its features, pruned.
    * `deployed`: what an agent calls, for logs of texts.
    * `diagnosis`: of the sparse policy, where it was asked for.
    * `names`: of the tools in the diagnosis.
    """

    summary: dict[str, Any]
    router: Router
    deployed: agents.Router | None = None
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
    popularity and text retrieval.

    * `progress`: a bar on stderr.

    Raises: LogError for logs that cannot be split or hold no tools.
    """
    options = options or Options()
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
    times: dict[str, float] = {}
    curve, fold, sparse, found = _train_all(job, times, progress)
    seen, test_uses = set(job.catalogue), [name for tools in parts.test.sets for name in tools]
    summary = {
        "log": log.notes
        | {
            "hash": log_hash(log),
            "records": len(log.sets),
            "tools": names.size,
            "tools_used_once": int((uses == 1).sum()),
            "budget": budget,
            "longer_records_dropped": len(log.sets) - len(within.sets),
            "records_without_choice_dropped": len(within.sets) - len(chose.sets),
            "objective": sparse.task.objective,
            "described": sum(bool(tool.description) for tool in log.tools.values()),
        },
        "split": {name: len(part.sets) for name, part in parts._asdict().items()}
        | {f"{name}_groups": len(set(part.groups)) for name, part in parts._asdict().items()}
        | {
            "tools_seen_in_training": len(seen),
            "test_records_judged": len(fold.test.groups),
            "test_uses": len(test_uses),
            "test_uses_of_unseen_tools": sum(name not in seen for name in test_uses),
        },
        "kept": kept_tools(sparse, fold, log),
        "certificate": sparse.certificate,
        "result": curve[-1],
        "learning_curve": curve,
        "seconds": times,
    }
    agent = None
    if found is not None:
        with clock(times, "router"):
            agent = joint.deployed(found, parts.validation, log.tools)
            judged = outcomes.judge(agent, parts.validation, parts.test)
            summary["router"] = joint.summary(found) | judged
            agent = outcomes.held_to(agent, parts.test)
            summary["router"]["value"] = joint.value(found, parts.test)
    pruned = sparse.policy.pruned()
    kept = [fold.names[tool] for tool in np.asarray(pruned.tools)]
    costs = [log.tools.get(name, Tool()).cost for name in kept]
    diagnosis = None
    if options.diagnose:
        with clock(times, "diagnosis"):
            diagnosis = control.diagnose(
                sparse.task,
                sparse.penalised,
                key=jax.random.key(options.seed),
                lam=sparse.certificate["lam"],
                num_resamples=_RESAMPLES,
            )
    pruned = dataclasses.replace(pruned, budget=budget)
    router = Router(kept, fold.features, pruned, costs)
    return Result(summary, router, agent, diagnosis, tuple(fold.names))


def kept_tools(sparse: SparseFit, fold: Fold, log: RouteLog) -> list[dict[str, Any]]:
    """The kept tools, strongest first: root mean square of ⟨θ_j, ψ⟩ over the training contexts
    (nats), 0 without θ_j.
    """
    result = sparse.scores
    spread = np.sqrt(np.mean((fold.rows @ result.coef.T) ** 2, axis=0))
    strength = dict(zip(result.support.tolist(), spread.tolist(), strict=True))
    rows = []
    for tool in np.asarray(sparse.policy.kept).tolist():
        about = log.tools.get(fold.names[tool], Tool())
        rows.append(
            {
                "tool": fold.names[tool],
                "strength": strength.get(tool, 0.0),
                "intercept": float(result.intercept[tool]),
                "uses": int(fold.uses[tool]),
                "by": "context" if tool in strength else "intercept",
                "cost": about.cost,
                "family": about.family,
            }
        )
    return sorted(rows, key=lambda row: (-row["strength"], -row["uses"]))


def _train_all(
    job: _Job, times: dict[str, float], progress: bool
) -> tuple[list[dict[str, Any]], Fold, SparseFit, joint.JointFit | None]:
    """The learning curve's points, and what the router is made of, which is learned on all training
    records.

    With `processes` > 1 a second process takes the smaller training sets meanwhile (not on a GPU,
    whose memory one process claims).
    """
    import threadpoolctl

    options = job.options
    *smaller, whole = split.nested_subsets(
        len(job.parts.training.sets), options.curve, options.seed
    )
    beside = options.processes > 1 and smaller and jax.default_backend() == "cpu"
    with contextlib.ExitStack() as stack:
        # Threads that wait for a busy core spin: two processes were 20 times slower.
        stack.enter_context(threadpoolctl.threadpool_limits(1, "blas"))
        shown = stack.enter_context(bar(len(smaller) + 1, "training sets", shown=progress))
        pool = stack.enter_context(_second_process()) if beside else None
        waiting = [pool.submit(_train_smaller, job, subset) for subset in smaller] if pool else []
        point, fold, sparse, found = _train(job, whole, times)
        shown.update()
        points = []
        for number, subset in enumerate(smaller):
            with clock(times, "smaller training sets"):
                points.append(waiting[number].result() if pool else _train_smaller(job, subset))
            shown.update()
    return [*points, point], fold, sparse, found


def _second_process() -> concurrent.futures.ProcessPoolExecutor:
    x64 = jax.dtypes.canonicalize_dtype(float) == np.float64
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, context, _start_process, (x64,))


def _start_process(x64: bool) -> None:
    import threadpoolctl

    jax.config.update("jax_enable_x64", x64)
    threadpoolctl.threadpool_limits(1, "blas")


def _train_smaller(job: _Job, subset: np.ndarray) -> dict[str, Any]:
    return _train(job, subset, {})[0]


def _train(
    job: _Job, subset: np.ndarray, times: dict[str, float]
) -> tuple[dict[str, Any], Fold, SparseFit, joint.JointFit | None]:
    """All methods on the training records `subset`, judged: a point of the learning curve, and what
    the router is made of.
    """
    log, parts, catalogue, budget, options = job
    training = parts.training.take(subset)
    with clock(times, "features"):
        if options.earlier is None:
            features = fit_features(training.contexts, options.size)
        else:
            features = options.earlier.router.features
        fold = make_fold(parts, training, catalogue, features, budget)
    methods, tuning, sparse = _learn(fold, budget, options, times)
    policy = None
    if len(subset) == len(parts.training.sets) and isinstance(fold.contexts, list):
        with clock(times, "retrieval"):
            descriptions = [log.tools.get(name, Tool()).description for name in fold.names]
            found, tuning["retrieval"] = _retrieval(
                fold, descriptions, methods["popularity"], budget
            )
        methods |= found
        with clock(times, "router"):
            seen = set(catalogue)
            names = [*catalogue, *sorted(log.names() - seen)]
            given = training, parts.validation, names, budget, 8 * options.size
            policy = joint.fit_policy(*given)
            scores = joint.scores(policy, fold.test.contexts, fold.test.embeddings)
            methods = {"router": scores[:, : len(fold.names)]} | methods
    with clock(times, "evaluation"):
        judged = _judge(fold, methods, budget)
    point = {"records": len(subset), "tools": len(fold.names)} | judged | {"tuning": tuning}
    return point, fold, sparse, policy


def _learn(
    fold: Fold, budget: int, options: Options, times: dict[str, float]
) -> tuple[dict[str, Any], dict[str, Any], SparseFit]:
    """Popularity, the dense and the sparse policy of one training set; the last two tuned by the
    validation records' log-likelihood.
    """
    size, judged = len(fold.names), fold.validation
    # Where every record is full the likelihood of sets within the budget has no finite optimum.
    budget += int((fold.actions >= 0).all())

    def quality(scores: Scores) -> float:
        values = evaluate.log_likelihood(scores(judged.features), judged.actions, budget)
        known = ~np.isnan(values)
        if not known.any():
            raise LogError(
                "no validation record uses a tool that the training records use: give more records."
            )
        return float(np.average(values[known], weights=judged.weights[known]))

    def dense_fit(ridge: float, start: RidgeFit | None) -> RidgeFit:
        return fit_ridge(*data, ridge, start=start or popularity, weights=task.sample_weight)

    log = control.Log(fold.rows, fold.actions, fold.utilities, available=fold.shown)
    task = control.Task(
        log,
        size,
        budget,
        "weighted" if np.ptp(fold.utilities) > 0 else "imitation",
        families=fold.families,
        family_share=options.family_share,
    )
    if not control.lam_max(task) > 1e-12:
        raise LogError(
            "the contexts of the training records teach nothing: they are alike, or every record"
            " uses the same tools."
        )
    data = fold.rows, fold.actions, size, budget
    with clock(times, "popularity"):
        popularity = baselines.fit_popularity(*data, task.sample_weight)
    with clock(times, "dense policy"):
        dense, tried = tune_ridge(dense_fit, quality, first=_RIDGE)
    with clock(times, "sparse policy"):
        lam, start, earlier = options.lam, None, options.earlier
        if earlier is not None:
            lam = earlier.lam * float(np.sqrt(earlier.records / len(fold.rows)))
            start = _start(earlier, fold)
        sparse = fit_sparse(
            jax.random.key(options.seed), task, quality, lam, options.keep, _RIDGE, start
        )
    methods = {"sparse": sparse.scores, "dense": dense, "popularity": popularity}
    counts = {"kept": int(sparse.policy.kept.size), "support": int(sparse.policy.support.size)}
    return methods, {"dense": tried, "sparse": sparse.tried} | counts, sparse


def _start(earlier: Earlier, fold: Fold) -> control.FitState:
    """The earlier router's parameters in this catalogue; tools that it does not know start at their
    frequency.
    """
    policy, place = earlier.router.policy, {name: number for number, name in enumerate(fold.names)}
    rate = np.clip(fold.uses / len(fold.rows), 1e-9, 0.9)
    intercept = np.log(rate) - np.log1p(-rate)
    numbers = np.array([place.get(name, -1) for name in earlier.router.names], int)
    known = numbers >= 0
    intercept[numbers[known]] = np.asarray(policy.intercept)[known]
    tools = numbers[np.asarray(policy.positions)]
    order = np.argsort(tools, kind="stable")[(tools < 0).sum() :]
    return control.FitState(tools[order], np.asarray(policy.coef, float)[order], intercept)


def _retrieval(
    fold: Fold, descriptions: list[str], popularity: RidgeFit, budget: int
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Retrieval at its best setting, alone and as a policy on top of popularity, and what was
    tried: z = scale · cosine + popularity's intercepts.
    """

    def cosines_of(judged: Judged, choice: dict[str, Any]) -> np.ndarray:
        assert isinstance(fold.contexts, list) and isinstance(judged.contexts, list)
        texts = fold.contexts, choice, judged.contexts
        return baselines.retrieval(fold.names, descriptions, *texts)

    def quality(scores: np.ndarray) -> float:
        measured = evaluate.measure(scores, fold.validation.actions, budget, policy=False)
        return float(measured.ndcg.mean())

    tried = []
    for choice in baselines.RETRIEVAL_CHOICES:
        cosines = cosines_of(fold.validation, choice)
        scaled = [
            (quality(scale * cosines + popularity.intercept), scale)
            for scale in baselines.RETRIEVAL_SCALES
        ]
        best, scale = max(scaled, key=lambda row: row[0])
        found = {"validation": quality(cosines), "scale": scale, "with_popularity": best}
        tried.append(choice | found)
    alone = max(tried, key=lambda row: row["validation"])
    mixed = max(tried, key=lambda row: row["with_popularity"])
    with_popularity = mixed["scale"] * cosines_of(fold.test, mixed) + popularity.intercept
    scores = {"retrieval": cosines_of(fold.test, alone), "retrieval + popularity": with_popularity}
    return scores, tried


def _judge(fold: Fold, methods: dict[str, Any], budget: int) -> dict[str, Any]:
    """Every method on the test records, and the paired differences that matter."""
    test, measured = fold.test, {}
    for name, method in methods.items():
        scores = method.scores(test.features) if isinstance(method, RidgeFit) else method
        policy = name != "retrieval"
        measured[name] = evaluate.measure(scores, test.actions, budget, policy=policy)
    pairs = [*(("sparse", name) for name in measured if name != "sparse"), ("dense", "popularity")]
    return {
        "methods": {
            name: evaluate.summarise(values, test.groups) for name, values in measured.items()
        },
        "differences": {
            f"{a} - {b}": evaluate.compare(measured[a], measured[b], test.groups) for a, b in pairs
        },
    }
