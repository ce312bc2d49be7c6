"""Sparse bandits: the figures of the paper as printed, each with its number of trials and its long
panel, beside the bound that its theorem gives.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.bandits_experiments import DELTA, SIGMA
from benchmarks.harness import Options, Report, paragraphs
from jaxsac import bandits
from jaxsac.problems import bandits as problems

D, S = 10, 3


class Figure(NamedTuple):
    """Trials of one panel."""

    algorithm: Any
    theta: jax.Array
    trials: int
    power: float  # regret over T to this power is what is printed
    long: int  # steps of the panel on the right, or 0


def run(options: Options) -> Report:
    curves: dict[str, Any] = {}
    rows = []
    for name, case in options.progress(figures(jnp.dtype(options.dtype)).items(), "figures"):
        for horizon in (200,) if options.smoke else (2_000, *([case.long] if case.long else [])):
            ours = simulate(case._replace(trials=3 if options.smoke else case.trials), horizon)
            curves[f"{name}, T = {horizon:,}"] = ours, case.power
            rows.append({"figure": name, "T": horizon} | summary(case, horizon, ours))
    notes = paragraphs(
        """
        d = 10, s = 3, sigma = 0.1, delta = 0.05: the paper does not print its own. theta is uniform
        in [-1, 1]^10 but for figure 3, which has a separated and an adversarial one. Regret is
        against the greedy support, since against 1 - exp(-ratio) times the best one it is negative.

        Figure 1, 2 and 4 need radius_scale = 0.05, without which nothing is locked in 2,000 steps:
        their locks are not proved. Figures 3 and 5 have the radius "coord", which is.

        growth: slope of log regret against log T over the last quarter of log T, with its standard
        error over the trials; above the power as long as exploration has its share. bound:
        `regret_bound` with the algorithm's own radius, where it has a theorem and the radius its
        full length.

        recovered: share of the true support in that of the estimate at a tenth of T and at T.
        """
    )
    return Report({"Figures": rows}, notes, lambda figure: draw(figure, curves))


def figures(dtype) -> dict[str, Figure]:
    ellipsoid = bandits.Ellipsoid(problems.unit_diagonal_matrix(jax.random.key(1), D, dtype=dtype))
    uniform = jax.random.uniform(jax.random.key(6), (D,), dtype, -1.0, 1.0)
    kinds = {
        kind: problems.separated_parameter(D, S, kind=kind, dtype=dtype)
        for kind in ("standard", "adversarial")
    }
    noise: dict[str, Any] = {"sparsity": S, "sigma": SIGMA, "delta": DELTA}
    loose: dict[str, Any] = noise | {"radius_scale": 0.05}
    proved: dict[str, Any] = noise | {"radius": "coord"}
    patient: dict[str, Any] = {"sparsity": S, "schedule_scale": D**0.5}
    ball, curved = bandits.Ball(), bandits.LpBall(1.5)
    on_ellipsoid = bandits.apsee_greedy(ellipsoid, **loose)
    found = {
        "1, ellipsoid": Figure(on_ellipsoid, uniform, 20, 0.5, 0),
        "4, ellipsoid, average regret": Figure(on_ellipsoid, uniform, 20, 1.0, 10**5),
        "5a, l_2 ball": Figure(bandits.apsee(ball, **proved), uniform, 20, 0.5, 10**5),
        "5b, l_1.5 ball": Figure(bandits.apsee_greedy(curved, **proved), uniform, 20, 0.5, 10**5),
        "5c, l_1 ball": Figure(
            bandits.phased_greedy(bandits.CrossPolytope(), sparsity=S), uniform, 20, 2 / 3, 10**5
        ),
        "6, box": Figure(
            bandits.phased_greedy(bandits.Box(), **patient), uniform, 20, 2 / 3, 10**6
        ),
    }
    for kind in ("gaussian_orthogonal", "uniform_orthogonal", "block_orthogonal"):
        basis = bandits.exploration_basis(
            jax.random.key(7), ellipsoid, D, S, kind=kind, allow_dense=True, dtype=dtype
        )
        algorithm = bandits.apsee_greedy(ellipsoid, basis=basis, **loose)
        found[f"2, {kind}"] = Figure(algorithm, uniform, 20, 0.5, 0)
    for kind, theta in kinds.items():
        found[f"3, {kind}"] = Figure(bandits.apsee(ball, **proved), theta, 50, 0.5, 0)
    return dict(sorted(found.items()))


def simulate(case: Figure, horizon: int) -> Any:
    def one(key):
        return bandits.simulate(
            key, case.algorithm, case.theta, sigma=SIGMA, horizon=horizon, benchmark="greedy"
        )

    keys = jax.random.split(jax.random.key(5), case.trials)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


def summary(case: Figure, horizon: int, ours: Any) -> dict[str, Any]:
    regret, times = np.asarray(ours.regret, np.float64), ours.times[0]
    early, tenth = np.searchsorted(times, (horizon**0.75, horizon / 10))
    growth = np.log(regret[:, -1] / regret[:, early]) / np.log(times[-1] / times[early])
    bound, algorithm = "", case.algorithm
    if float(algorithm.radius_scale) == 1:
        given: dict[str, Any] = {} if algorithm.rule.gap else {"sigma": SIGMA}
        bound = bandits.regret_bound(algorithm, case.theta, horizon, **given)
    root = len(regret) ** 0.5
    return {
        "trials": len(regret),
        "regret": regret[:, -1].mean(),
        "±": regret[:, -1].std() / root,
        "bound": bound,
        "regret / T^power": regret[:, -1].mean() / horizon**case.power,
        "power": f"{case.power:.2f}",
        "growth": growth.mean(),
        "± growth": growth.std() / root,
        "locked": f"{ours.locked.mean():.0%}",
        "recovered": f"{ours.recovered[:, tenth].mean():.0%}, {ours.recovered[:, -1].mean():.0%}",
    }


def draw(figure, curves: dict[str, Any]) -> None:
    """Regret over its power of the time with the cloud of its trials; figure 3 as the share of the
    support that is recovered.
    """
    axes = figure.subplots(4, 4).ravel()
    for axis, (name, (ours, power)) in zip(axes, curves.items(), strict=False):
        values = ours.recovered if name.startswith("3") else ours.regret / ours.times**power
        axis.plot(ours.times[0], values.T, color="0.8", lw=0.4)
        axis.plot(ours.times[0], values.mean(0), lw=1)
        axis.set(xscale="log")
        axis.set_title(name, fontsize=6)
        axis.tick_params(labelsize=5)
