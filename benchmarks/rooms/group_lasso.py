"""Group lasso at an equal duality gap: one lambda, logistic loss, paths, cross-validation, many
problems; against four libraries.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.group_lasso_cases import Case, cases, random_cases
from benchmarks.cases.group_lasso_peers import TARGET, ask, best_of, worst_gap
from benchmarks.cases.group_lasso_profile import where_the_time_goes
from benchmarks.harness import NOT_RUN, Options, Report, in_new_process, paragraphs
from jaxsac import Groups, Status, designs, group_lasso

TURNS = 3  # ours and the peers are timed in turns, so that what else the machine does falls on all


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
        problem = group_lasso.Problem(X, y, groups, loss=case.loss)
        return {
            "jaxsac, cross_validate": lambda: group_lasso.cross_validate(
                problem, folds, lams=lams[0], tol=TARGET[dtype]
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
        spread = jax.jit(jax.shard_map(one_by_one, mesh=mesh, in_specs=shares, out_specs=shares))
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
        X = designs.MultiOutput(X, y.shape[1], by="feature")
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


def rows_of(
    case: Case, options: Options, turns: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a case, and where the time goes where that can be told."""
    one = len(case.X) == 1 and case.lams.shape[1] == 1 and case.y.ndim == 2
    told = one and turns > 1 and jax.default_backend() == "cpu" and not options.smoke
    rows = compare(case, options, turns)
    if not told:
        return rows, []
    return rows, where_the_time_goes(case, ours(case, options.dtype)["jaxsac"], options)


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
    notes = paragraphs(
        f"""
        Relative gap: duality gap over the null objective, recomputed in float64; the largest over
        problems and lambdas; target {TARGET[options.dtype]:g}. A peer's row is its fastest setting
        (its own tolerance; adelie with 1 and 2 threads) that meets it, or the one with the least
        gap (reached: False).

        '{NOT_RUN}': the peer is not installed where --peers-python points. Peers run in their own
        process; ours and theirs are timed in {TURNS} turns (cross-validation and the random
        problems in one), a case in a new process.

        First calls of ours include compilation; the peers' warm-up is left out.

        Where the time goes: every part waited for, so the sum is above the time of a plain call.
        """
    )
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
