"""Group lasso at an equal duality gap: one lambda, logistic loss, paths, cross-validation, many
problems; against four libraries.
"""

import collections
import concurrent.futures
import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.group_lasso_cases import LONG_PATH_TOLS, Case, cases, random_cases
from benchmarks.harness import NOT_RUN, Options, Report, in_new_process, run_peer
from jaxsac import Groups, Status, designs, group_lasso
from jaxsac.group_lasso.methods.host import check as host_check
from jaxsac.group_lasso.methods.host import kernels as rounds
from jaxsac.group_lasso.methods.host import loss as host_loss
from jaxsac.group_lasso.methods.host import rounds as working_set
from jaxsac.group_lasso.methods.host import steps as host_steps

TARGET = {"float64": 1e-6, "float32": 1e-4}
TURNS = 3  # ours and the peers are timed in turns, so that what else the machine does falls on all


def relative_gap(
    loss: str, X: np.ndarray, y: np.ndarray, lam: float, coef: np.ndarray, group_size: int
) -> float:
    """The duality gap over the null objective in float64 numpy: the one judge of everybody's
    answer.
    """
    z = (X @ coef.reshape(X.shape[1], -1)).reshape(y.shape)
    if loss == "squared":
        slope, value, null = y - z, 0.5 * np.sum((y - z) ** 2) / len(y), 0.5 * np.sum(y**2) / len(y)
    else:
        slope, value, null = y / (1 + np.exp(y * z)), np.mean(np.logaddexp(0, -y * z)), np.log(2)
    norms = np.linalg.norm(coef.reshape(-1, group_size), axis=1)
    limit = lam / np.linalg.norm((X.T @ slope / len(y)).reshape(-1, group_size), axis=1).max()
    if loss == "squared":
        scale = np.clip(np.sum(slope * y) / np.sum(slope**2), -limit, limit)
        dual = np.sum(scale * slope * y - 0.5 * scale**2 * slope**2) / len(y)
    else:
        share = np.clip(min(1.0, limit) * slope * y, 1e-300, 1 - 1e-16)
        dual = np.mean(-share * np.log(share) - (1 - share) * np.log1p(-share))
    return float((value + lam * norms.sum() - dual) / null)


def worst_gap(case: Case, coefs: np.ndarray) -> float:
    """The largest relative gap over problems and lambdas; coefs [N, L, p]."""
    return max(
        relative_gap(case.loss, X, y, lam, np.asarray(coef, np.float64), case.group_size)
        for X, y, lams, rows in zip(case.X, case.y, case.lams, coefs, strict=True)
        for lam, coef in zip(lams, rows, strict=True)
    )


def ours(case: Case, dtype: str) -> dict[str, Callable[[], Any]]:
    """Our ways to solve a case; each returns a Solution with coefficients [N, L, p] or [L, p]."""
    groups = Groups.equal(case.num_coefficients // case.group_size, case.group_size)
    X, y, lams = (jnp.asarray(array, dtype) for array in (case.X, case.y, case.lams))
    # In float64 the certificate's own gap includes a rounding bound far below the tolerance.
    solve = functools.partial(group_lasso.solve, groups=groups, loss=case.loss, tol=TARGET[dtype])
    if case.whole is not None:
        X, y, folds = (
            jnp.asarray(array, kind)
            for array, kind in zip(case.whole, (dtype, dtype, jnp.int32), strict=True)
        )
        keywords = {"lams": lams[0], "loss": case.loss, "tol": TARGET[dtype]}
        return {
            "jaxsac, cross_validate": lambda: group_lasso.cross_validate(
                X, y, groups, folds, **keywords
            )
        }
    if len(case.X) > 1:
        batch = jax.jit(jax.vmap(lambda X, y, lam: solve(X, y, lam=lam)))

        def one_by_one(X, y, lam):
            return jax.lax.map(lambda at: solve(at[0], at[1], lam=at[2]), (X, y, lam))

        num_devices = math.gcd(jax.device_count(), len(X))
        mesh = jax.make_mesh(
            (num_devices,),
            ("problems",),
            axis_types=(jax.sharding.AxisType.Auto,),
            devices=jax.devices()[:num_devices],
        )
        shares = jax.sharding.PartitionSpec("problems")
        spread = jax.jit(
            jax.shard_map(one_by_one, mesh=mesh, in_specs=shares, out_specs=shares, check_vma=False)
        )
        arrays = (X, y, lams[:, 0])
        placed = jax.device_put(arrays, jax.sharding.NamedSharding(mesh, shares))
        chunks = jax.jit(one_by_one)
        return {
            "jaxsac, vmap": lambda: batch(*arrays),
            "jaxsac, lax.map": lambda: chunks(*arrays),
            f"jaxsac, lax.map on {num_devices} devices": lambda: spread(*placed),
        }
    X, y, lam = X[0], y[0], lams[0, 0]  # here, not in the timed call: it copies X
    if y.ndim > 1:
        X = designs.multi_output(X, y.shape[1], by="feature")
    if case.lams.shape[1] > 1:
        steps = functools.partial(
            group_lasso.path,
            X,
            y,
            groups,
            num_lams=case.lams.shape[1],
            min_ratio=case.lams[0, -1] / case.lams[0, 0],
            loss=case.loss,
            tol=TARGET[dtype],
        )
        return {"jaxsac, path": steps}
    return {"jaxsac": lambda: solve(X, y, lam=lam)}


def fold_paths(case: Case, dtype: str) -> Any:
    """The fits of a cross-validation, which keeps only their losses, for the judge: a Solution with
    coefficients [K, L, p].
    """
    assert case.whole is not None
    X, y, folds = case.whole
    groups = Groups.equal(X.shape[1] // case.group_size, case.group_size)
    paths = [
        group_lasso.path(
            jnp.asarray(X, dtype),
            jnp.asarray(y, dtype),
            groups,
            lams=jnp.asarray(case.lams[0], dtype),
            loss=case.loss,
            sample_weight=jnp.asarray((folds != fold) * len(y) / np.sum(folds != fold), dtype),
            tol=TARGET[dtype],
        )
        for fold in range(len(case.X))
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *paths)


class Answer(NamedTuple):
    """A peer at one setting: how it is called, the worst gap that it left, and its seconds."""

    name: str
    setting: tuple[float, int]
    gap: float
    seconds: list[float]


def ask(
    peer: str, case: Case, options: Options, tols: tuple[float, ...], threads: int
) -> list[Answer] | str:
    """The peer's answers at several tolerances, or why there are none."""
    settings = {
        "group_size": case.group_size,
        "loss": case.loss,
        "tols": tols,
        "min_repeats": 2 if case.lams.shape[1] > 50 else 5,
        "min_seconds": 0.05 if options.smoke else 1.0,
        "threads": threads,
    }
    # Many problems share the cores as processes of one thread each.
    processes = threads if len(case.X) > 1 else 1
    shares = np.array_split(np.arange(len(case.X)), processes)

    def one_share(of: np.ndarray):
        arrays = {"X": case.X[of], "y": case.y[of], "lams": case.lams[of]}
        own = {"threads": threads // processes}
        python = options.peers_python
        return run_peer(
            f"group_lasso/{peer}",
            arrays,
            settings | own,
            python=python,
            threads=threads // processes,
            timeout=900,
        )

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(one_share, shares))
    for answer in found:
        if not answer.ok:
            return answer.status
    tail = (-1, case.lams.shape[1], case.num_coefficients)
    coefs = [
        np.concatenate([answer.arrays["coef"][k].reshape(tail) for answer in found])
        for k in range(len(tols))
    ]
    # They started together; the last to end ends the work.
    calls = zip(*(answer.numbers["seconds"] for answer in found), strict=True)
    times = [
        np.max([sorted(each)[: min(map(len, several))] for each in several], axis=0)
        for several in calls
    ]
    how = f"{processes} processes" if processes > 1 else f"{threads} threads"
    return [
        Answer(f"{peer}, tol {tol:g}, {how}", (tol, threads), worst_gap(case, coef), list(seconds))
        for tol, coef, seconds in zip(tols, coefs, times, strict=True)
    ]


def best_of(peer: str, case: Case, options: Options) -> dict[str, Answer | str]:
    """The fastest setting that meets the target, or else the one with the least gap; on long paths
    also the fastest at ten times the target.
    """
    answers: list[Answer] = []
    # Of several problems each core takes a share; on one the others' solvers run on one thread.
    several = (2,) if len(case.X) > 1 else (1, 2) if peer == "adelie" else (1,)
    for threads in (1,) if options.smoke else several:
        asked = ask(peer, case, options, case.tols[peer][case.loss], threads)
        if isinstance(asked, str):
            return {peer: asked}
        answers += asked

    def fastest(target: float) -> Answer:
        enough = [answer for answer in answers if answer.gap <= target]
        return (
            min(enough, key=lambda a: np.median(a.seconds))
            if enough
            else min(answers, key=lambda a: a.gap)
        )

    target = TARGET[options.dtype]
    found: dict[str, Answer | str] = {peer: fastest(target)}
    return (
        found | {f"{peer}, loose": fastest(10 * target)} if case.tols == LONG_PATH_TOLS else found
    )


def timed_row(
    case: Case, name: str, seconds: list[float], gap: float, options: Options
) -> dict[str, Any]:
    median, p90 = np.quantile(seconds, [0.5, 0.9])
    return {
        "case": case.name,
        "solver": name,
        "median_ms": 1e3 * median,
        "least_ms": 1e3 * min(seconds),
        "relative_gap": gap,
        "reached": gap <= TARGET[options.dtype],
        "verdict": "stable" if p90 <= 1.25 * median else "unstable",
    }


def compare(case: Case, options: Options, turns: int) -> list[dict[str, Any]]:
    """Ours and the peers', timed in turns."""
    thunks = ours(case, options.dtype)
    peers = {
        name: best
        for peer, tols in case.tols.items()
        if case.loss in tols
        for name, best in best_of(peer, case, options).items()
    }
    samples: dict[str, list[float]] = {name: [] for name in (*thunks, *peers)}
    first: dict[str, float] = {}
    for _ in range(1 if options.smoke else turns):
        for name, timing in options.time(
            thunks, **({} if options.smoke else {"min_repeats": 5, "min_seconds": 1.0})
        ).items():
            samples[name] += [timing.minimum, timing.median, timing.p90]
            first.setdefault(name, timing.first_call)
        for peer, best in peers.items():
            if isinstance(best, str) or options.smoke:
                continue
            again = ask(peer.partition(",")[0], case, options, best.setting[:1], best.setting[1])
            if not isinstance(again, str):
                times = again[0].seconds
                samples[peer] += [min(times), *np.quantile(times, [0.5, 0.9]).tolist()]
    rows = []
    for name, thunk in thunks.items():
        solution = thunk() if case.whole is None else fold_paths(case, options.dtype)
        gap = worst_gap(
            case, np.asarray(solution.value.coef).reshape(len(case.X), case.lams.shape[1], -1)
        )
        more = {
            "status": ", ".join(Status(code).name for code in np.unique(solution.status)),
            "steps": int(np.sum(solution.stats["num_steps"]))
            if case.lams.shape[1] > 1
            else int(np.max(solution.stats["num_steps"])),
            "first_call_ms": 1e3 * first[name],
        }
        rows.append(timed_row(case, name, samples[name], gap, options) | more)
    for peer, best in peers.items():
        if isinstance(best, str):
            rows.append({"case": case.name, "solver": peer, "median_ms": best})
        else:
            rows.append(
                timed_row(case, best.name, samples[peer] or best.seconds, best.gap, options)
            )
    return rows


@contextlib.contextmanager
def watched(pieces: dict[Any, tuple[str, ...]]) -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of these pieces of the host-driven method, by module, each waited
    for.
    """
    spent: dict[str, list[float]] = collections.defaultdict(list)
    plain = {
        (module, name): getattr(module, name) for module, names in pieces.items() for name in names
    }

    def watch(name, function):
        def call(*arguments, **keywords):
            start = time.perf_counter()
            result = jax.block_until_ready(function(*arguments, **keywords))
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    try:
        for (module, name), function in plain.items():
            setattr(module, name, watch(name, function))
        yield spent
    finally:
        for (module, name), function in plain.items():
            setattr(module, name, function)


def where_the_time_goes(case: Case, options: Options) -> list[dict[str, Any]]:
    """The pieces of one solve against two products with all of X: the least that a certified answer
    takes.
    """
    solve = ours(case, options.dtype)["jaxsac"]
    X, r = jnp.asarray(case.X[0], options.dtype), jnp.asarray(case.y[0], options.dtype)
    product = jax.jit(lambda X, r: r @ X)
    floor = 2.0 * options.time({"product": lambda: product(X, r)})["product"].median
    solve()
    runs = 3 if options.smoke else 9
    pieces: dict[Any, tuple[str, ...]] = {
        rounds: ("first_pass", "scales", "descend", "refit", "gradients", "certify"),
        host_loss: ("roots", "residual", "values_along"),
        working_set: ("exchanged",),
        host_check: ("combined",),
        host_steps: ("make", "newton_steps", "newton_direction", "combined", "products"),
    }
    with watched(pieces) as spent:
        start = time.perf_counter()
        for _ in range(runs):
            solve()
        total = (time.perf_counter() - start) / runs
    parts = {name: sum(times) / runs for name, times in spent.items()} | {
        "host": total - sum(map(sum, spent.values())) / runs,
        "all": total,
    }
    calls = {name: len(times) / runs for name, times in spent.items()}
    return [
        {
            "case": case.name,
            "piece": name,
            "calls": calls.get(name, 1.0),
            "ms": 1e3 * part,
            "share": part / total,
            "over_two_passes": part / floor,
        }
        for name, part in parts.items()
    ]


def rows_of(
    case: Case, options: Options, turns: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a case, and where the time goes where that can be told."""
    one = len(case.X) == 1 and case.lams.shape[1] == 1 and case.y.ndim == 2
    told = one and turns > 1 and jax.default_backend() == "cpu" and not options.smoke
    return compare(case, options, turns), where_the_time_goes(case, options) if told else []


def run(options: Options) -> Report:
    def measured(case: Case, turns: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        # What ran before in a process slows some cases down, and is not theirs.
        return (
            rows_of(case, options, turns)
            if options.smoke
            else in_new_process(options.dtype, rows_of, case, options, turns)
        )

    rows: list[dict[str, Any]] = []
    pieces: list[dict[str, Any]] = []
    drawn: list[dict[str, Any]] = []
    for case in options.progress(cases(options.smoke, options.dtype), "group lasso"):
        found, parts = measured(case, TURNS if case.whole is None else 1)
        rows, pieces = rows + found, pieces + parts
    for case in options.progress(random_cases(options.smoke, options.dtype), "ten random problems"):
        drawn += measured(case, 1)[0]
    notes = [
        f"Relative gap: duality gap over the null objective, recomputed in float64; the largest over problems and lambdas; target "
        f"{TARGET[options.dtype]:g}. A peer's row is its fastest setting (its own tolerance; adelie with 1 and 2 threads) that meets it, or the one "
        "with the least gap (reached: False).",
        f"'{NOT_RUN}': the peer is not installed where --peers-python points. Peers run in their own process; "
        f"ours and theirs are timed in {TURNS} turns (cross-validation and the random problems in one), a case in a new process.",
        "First calls of ours include compilation; the peers' warm-up is left out.",
        "Where the time goes: every piece waited for, so the sum is above the time of a plain call.",
    ]
    tables = {
        "time at an equal gap": rows,
        "ten random problems": drawn,
        "where the time goes": pieces,
    }
    return Report(tables, notes, functools.partial(_plot, rows))


def _plot(rows: list[dict[str, Any]], figure: Any) -> None:
    names = list(dict.fromkeys(row["case"] for row in rows))
    columns = 3
    height = math.ceil(len(names) / columns)
    figure.set_size_inches(15, 1.9 * height)
    every = figure.subplots(height, columns, squeeze=False).ravel()
    for axes in every[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(every, names, strict=False):
        timed = [
            row
            for row in rows
            if row["case"] == name and not isinstance(row.get("median_ms"), (str, type(None)))
        ]
        colours = [
            "tab:blue" if row["solver"].startswith("jaxsac") else "tab:grey" for row in timed
        ]
        bars = axes.barh(range(len(timed)), [row["median_ms"] for row in timed], color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=7)
        axes.set_yticks(range(len(timed)), [row["solver"] for row in timed])
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("ms", fontsize=7)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
