"""Bilevel penalties: error against sigma, spread against pairing, cost of a step, time to target on real data, seeds at once, samples."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.harness import NOT_RUN, Options, Report, run_peer
from jaxsac import bilevel
from jaxsac.problems import bilevel as problems
from jaxsac.problems import bilevel_rl

DIFFERENCES = ("forward", "central", "central_linear", "one_sided")
SMOOTH = bilevel.Problem(problems.smooth_upper, problems.smooth_lower)


def run(options: Options) -> Report:
    dtype = jnp.dtype(options.dtype)
    curves: dict[str, Any] = {}
    tables = {
        "Hypergradient error against sigma": errors(options, dtype, curves),
        "Spread against pairing, mini-batches": mini_batches(options, dtype),
        "Spread against pairing, trajectories": trajectories(options, dtype),
        "Cost of an outer step": costs(options, dtype),
        "Time to 99 %": time_to_target(options, dtype),
        "32 seeds at once": many_seeds(options, dtype),
        "Samples": sample_complexity(options, dtype),
        "Four rooms": four_rooms(options, dtype),
    }
    notes = [
        "Error: relative to the implicit gradient in float64, smooth problem (50 lower and 20 upper dimensions); certified: CONVERGED.",
        "Mini-batches: 200 seeds, 300 steps of batch 50 at rate 0.1; the spread is of the cross term in x. Trajectories: horizon 100, "
        "per-trajectory standard deviation (root of the summed variances) of the cross term, whose exact norm is 3.8.",
        "Cost: the least time of a compiled step over that of one gradient of lower + sigma * upper, beside the gradients in the step.",
        "Time to 99 %: seconds in solver steps (compilation and evaluation apart) until upper(x, y*(x)), y* solved anew, has made 99 %"
        " of the way from x0 to the best value that any row saw. One configuration for both problems: K = 1, Nesterov SGD(0.2, 0.9)"
        " inside, Adam at 0.1 falling to 0.02 outside, sigma = 0.01. SOBA, implicit: the same loop with second-order products. "
        "A peer's row is the best of its settings: an inner solve to tolerance (LBFGS, BFGS) and an implicit pull-back at every step, for "
        "three rates of Adam; benchmark_bilevel's own SGD with its own schedules on batches of 64, for six pairs (step, step / outer step),"
        " 2 seconds and checkpoints of 128 steps each.",
        "Samples: norm of the exact gradient of the bilevel objective over the second half of T stochastic steps, seeds averaged; p: the "
        "exponent in samples ~ epsilon^-p for a gradient NORM of epsilon. The paper states epsilon^-4 in its first version and about "
        "epsilon^-3 in the later ones, for bilevel RL and in its own convention; a measured slope on one problem is no test of a bound.",
        "Four rooms: the leader's value (mean over two goals) of charges learned in 300 steps of Adam, by central_linear (K = 1, natural "
        "gradients, sigma = 1e-9) and by exact gradients through soft policy iteration; published: HPGD's table, in its authors' units "
        "(sampled, 10,000 iterations; their planner's moves fail with another chance than their simulator's), so only orders compare.",
    ]
    return Report(tables, notes, lambda figure: draw(figure, curves))


def errors(options: Options, dtype, curves) -> list[dict[str, Any]]:
    data = problems.smooth(dtype)
    exact = problems.smooth_hypergradient(data)
    sigmas = (1e-2,) if options.smoke else (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6)
    rows = []
    for difference in options.progress(("central_linear",) if options.smoke else DIFFERENCES, "sigma"):
        for sigma in sigmas:
            solution = bilevel.hypergradient(SMOOTH, data.x, jnp.zeros(50, dtype), data=data, sigma=sigma, difference=difference)
            error = float(np.linalg.norm(np.asarray(solution.value, np.float64) - exact) / np.linalg.norm(exact))
            rows.append({"difference": difference, "sigma": sigma, "error": error, "certified": int(solution.status) == 0})
    curves["errors"] = rows
    return rows


def mini_batches(options: Options, dtype) -> list[dict[str, Any]]:
    data = problems.logistic(dtype=dtype)
    problem = bilevel.Problem(problems.feature_weights_upper, problems.ridge_logistic_lower)
    method = bilevel.Method(inner=optax.sgd(0.1), outer=optax.sgd(0.0), inner_steps=10)
    x, start = jnp.zeros((), dtype), jnp.zeros(20, dtype)
    seeds, steps = (4, 2) if options.smoke else (200, 30)

    def rows(key):
        index = jax.random.randint(key, (50,), 0, 1000)
        return data._replace(train=data.train[index], train_targets=data.train_targets[index])

    def paired(key, sigma):
        def one(state, key):
            batches = jax.vmap(rows)(jax.random.split(key, 10))
            return bilevel.step(problem, state, method, sigma=sigma, batch=data, inner_batches=batches)[0], None

        state = lax.scan(one, bilevel.init(problem, x, start, method), jax.random.split(key, steps))[0]
        return jnp.vdot(state.d, state.z) + 0.5 * sigma * jnp.vdot(state.d, state.d)

    def independent(key, sigma):
        def copy(key, perturbed):
            def one(y, key):
                batch = rows(key)
                pull = jax.grad(problems.feature_weights_upper, 1)(x, y, batch)
                return y - 0.1 * (jax.grad(problems.ridge_logistic_lower, 1)(x, y, batch) + perturbed * sigma * pull), None

            return lax.scan(one, start, jax.random.split(key, 10 * steps))[0]

        first, second = jax.random.split(key)
        return 0.5 * (jnp.sum(copy(first, 1.0) ** 2) - jnp.sum(copy(second, 0.0) ** 2)) / sigma

    keys = jax.random.split(jax.random.key(1), seeds)
    table = []
    spread = [jax.jit(lambda sigma, one=one: jnp.std(jax.vmap(one, (0, None))(keys, sigma))) for one in (paired, independent)]
    for sigma in (1e-1, 1e-2, 1e-3):
        one, other = (float(part(jnp.asarray(sigma, dtype))) for part in spread)
        table.append({"sigma": sigma, "paired": one, "independent": other, "ratio": other / one})
    return table


def trajectories(options: Options, dtype) -> list[dict[str, Any]]:
    bed = bilevel_rl.random_reward_bed(dtype=dtype)
    mdp = bilevel.MDP(bed.transition, bed.initial, bed.discount)

    def model(x):
        return mdp, bed.reward(x)

    def leader(x, log_probs):
        return -bilevel.expected_return(mdp, bed.leader_reward, log_probs)

    exact = bilevel.policy_problem(model, leader)
    best = bilevel.soft_solve(mdp, bed.reward(bed.x), bed.temperature).value.log_probs
    solution = bilevel.hypergradient(exact, bed.x, best, data=bed.temperature)
    z, d = solution.state
    number = 8 if options.smoke else 4000

    @jax.jit
    def terms(bed, z, d, first, second, sigma):  # the bed as an argument: XLA would fold long cumulative sums of constants
        mdp = bilevel.MDP(bed.transition, bed.initial, bed.discount)
        sampled = bilevel.sampled_policy_problem(lambda x: (mdp, bed.reward(x)), lambda x, log_probs, uniforms: leader(x, log_probs))

        change = sampled.lower_difference
        assert change is not None

        def one(uniforms, others):
            y, gradient = z + sigma * d, jax.grad(sampled.lower)
            batch, other = ((u[None], bed.temperature) for u in (uniforms, others))
            at_y, at_z = gradient(bed.x, y, batch), gradient(bed.x, z, batch)
            reweighted = change(bed.x, z, sigma * d, batch)[0][0]
            return jnp.stack([at_y - gradient(bed.x, z, other), at_y - at_z, reweighted]) / sigma

        return jax.vmap(one)(first, second)

    uniforms = [jax.random.uniform(jax.random.key(seed), (number, 200), dtype) for seed in (1, 2)]
    rows = []
    for sigma in (0.1, 0.01):
        samples = np.asarray(terms(bed, z, d, *uniforms, jnp.asarray(sigma, dtype)), np.float64)
        spread = np.sqrt(samples.var(axis=0).sum(axis=1))
        bias = np.linalg.norm(samples[:, 2].mean(axis=0) - np.asarray(solution.value, np.float64))
        rows.append({
            "sigma": sigma, "independent": spread[0], "common numbers": spread[1], "reweighted": spread[2], "ratio": spread[0] / spread[2],
            "bias of reweighted, in standard errors": bias / (spread[2] / np.sqrt(number)),
        })  # fmt: skip
    return [{name: float(value) for name, value in row.items()} for row in rows]


class Bed(NamedTuple):
    """A real-data problem and where it starts."""

    problem: bilevel.Problem
    data: Any
    x: jax.Array
    y: jax.Array
    steps: int


def clip_weights(x):
    """Log-weights in [-10, 1]: beyond that a feature is free, or gone."""
    return jnp.clip(x, -10.0, 1.0)


def real_beds(dtype) -> dict[str, Bed]:
    cancer, digits = problems.breast_cancer(dtype), problems.digits_cleaning(dtype)
    weights = bilevel.Problem(problems.feature_weights_upper, problems.feature_weights_lower, project_x=clip_weights)
    cleaning = bilevel.Problem(problems.cleaning_upper, problems.cleaning_lower)
    return {
        "breast_cancer, weight per feature": Bed(weights, cancer, jnp.zeros(30, dtype), jnp.zeros(30, dtype), 3000),
        "digits, cleaning": Bed(cleaning, digits, jnp.zeros(1000, dtype), jnp.zeros((64, 10), dtype), 600),
    }


def some_beds(options: Options, dtype) -> dict[str, Bed]:
    return dict(list(real_beds(dtype).items())[: 1 if options.smoke else 2])


OUTER = optax.adam(optax.exponential_decay(0.1, 200, 0.8, end_value=0.02))
INNER = optax.sgd(0.2, momentum=0.9, nesterov=True)


def costs(options: Options, dtype) -> list[dict[str, Any]]:
    rows = []
    cases = {"forward": lambda K: 2 * K + 3, "central": lambda K: 2 * K + 4, "central_linear": lambda K: 3 * K + 3}
    for name, bed in some_beds(options, dtype).items():
        gradient = jax.jit(jax.grad(lambda y, x, data, bed=bed: bed.problem.lower(x, y, data) + 0.01 * bed.problem.upper(x, y, data)))
        thunks: dict[str, Callable[[], Any]] = {"gradient": functools.partial(gradient, bed.y, bed.x, bed.data)}
        for difference in ("forward",) if options.smoke else cases:
            for K in (1,) if options.smoke else (1, 5):
                method = bilevel.Method(difference, INNER, OUTER, K)
                step = jax.jit(lambda state, data, p=bed.problem, m=method: bilevel.step(p, state, m, batch=data))
                thunks[f"{difference} {K}"] = functools.partial(step, bilevel.init(bed.problem, bed.x, bed.y, method), bed.data)
        times = options.time(thunks)
        for label, timing in times.items():
            if label != "gradient":
                difference, K = label.split()
                count = cases[difference](int(K))
                ratio = timing.minimum / times["gradient"].minimum
                row = {"problem": name, "difference": difference, "K": int(K), "gradients": count, "time / gradient": ratio}
                rows.append(row | {"time / (gradients x gradient)": ratio / count, "microseconds": 1e6 * timing.minimum})
    return rows


def exact_upper(bed: Bed) -> Callable[[Any], float]:
    """upper(x, y*(x)), the lower level solved anew by L-BFGS."""

    @jax.jit
    def evaluate(x):
        y = bilevel.argmin(lambda x, y: bed.problem.lower(x, y, bed.data), bed.y).solution(x).value
        return bed.problem.upper(x, y, bed.data)

    return lambda x: float(evaluate(jnp.asarray(x, bed.x.dtype)))


class Track(NamedTuple):
    """Solver seconds, steps and x at each checkpoint."""

    seconds: list[float]
    steps: list[int]
    xs: list[Any]


def track(bed: Bed, method: bilevel.Method, budget: float, chunk: int, max_steps: int) -> Track:
    @jax.jit
    def advance(state, data):
        return lax.fori_loop(0, chunk, lambda _, s: bilevel.step(bed.problem, s, method, batch=data)[0], state)

    state = bilevel.init(bed.problem, bed.x, bed.y, method)
    jax.block_until_ready(advance(state, bed.data))
    spent, seconds, steps, xs = 0.0, [], [], []
    while spent < budget and len(steps) * chunk < max_steps:
        start = time.perf_counter()
        state = jax.block_until_ready(advance(state, bed.data))
        spent += time.perf_counter() - start
        seconds.append(spent)
        steps.append((len(steps) + 1) * chunk)
        xs.append(np.asarray(state.x))
    return Track(seconds, steps, xs)


def time_to_target(options: Options, dtype) -> list[dict[str, Any]]:
    rows = []
    for name, bed in options.progress(list(some_beds(options, dtype).items()), "time to 99 %"):
        max_steps = 20 if options.smoke else bed.steps
        methods = {
            "penalty, forward": (bilevel.Method("forward", INNER, OUTER), 10),
            "penalty, central_linear": (bilevel.Method("central_linear", INNER, OUTER), 10),
            "SOBA, same loop": (bilevel.Method("soba", INNER, OUTER), 10),
            "implicit, same loop, K = 20": (bilevel.Method("implicit", INNER, OUTER, 20, linear_steps=20), 5),
        }
        if options.smoke:
            methods = dict(list(methods.items())[:1])
        tracks = {label: track(bed, method, 20.0, chunk, max_steps) for label, (method, chunk) in methods.items()}
        peers, absent = ({}, {}) if options.smoke else peer_tracks(options, name, bed)
        for by_setting in peers.values():
            tracks |= by_setting
        evaluate = exact_upper(bed)
        start = evaluate(bed.x)
        strides = {label: max(1, len(t.xs) // 100) for label, t in tracks.items()}
        values = {label: [evaluate(x) for x in t.xs[:: strides[label]]] for label, t in tracks.items()}
        target = start - 0.99 * (start - np.nanmin([min(v) for v in values.values()]))
        table = {}
        for label, t in tracks.items():
            hit = next((i * strides[label] for i, value in enumerate(values[label]) if value <= target), None)
            table[label] = {
                "problem": name, "method": label, "best": float(np.nanmin(values[label])), "target": target,
                "seconds to 99 %": "not reached" if hit is None else t.seconds[hit], "steps to 99 %": "-" if hit is None else int(t.steps[hit]),
                "microseconds per step": 1e6 * t.seconds[-1] / int(t.steps[-1]),
            }  # fmt: skip
        rows += [table[label] for label in methods]
        rows += [min((table[label] for label in by_setting), key=rank) for by_setting in peers.values()]
        rows += [{"problem": name, "method": label, "best": status} for label, status in absent.items()]
    return rows


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """A peer's best setting: the soonest to the target, else the lowest value."""
    seconds = row["seconds to 99 %"]
    return (np.inf if isinstance(seconds, str) else seconds, row["best"])



STOCHASTIC = {"saba": "SABA", "soba": "SOBA", "amigo": "AmIGO", "stocbio": "StocBiO", "f2sa": "F2SA"}


def peer_tracks(options: Options, name: str, bed: Bed) -> tuple[dict[str, dict[str, Track]], dict[str, str]]:
    """For each peer its tracks by setting; and the status of those that did not run."""
    arrays = {field: value for field, value in bed.data._asdict().items() if field in problems.Split._fields}
    cleaning = "digits" in name
    common = {"problem": "cleaning" if cleaning else "weights", "dtype": str(options.dtype)}
    rates = [0.03, 0.1, 0.3]
    ratios = (1e-2, 1e-3, 1e-4) if cleaning else (1.0, 1e-1, 1e-2)
    grid = [(step, ratio) for step in (0.1, 0.5) for ratio in ratios]
    calls: dict[str, tuple[str, dict[str, Any], list[str]]] = {}
    for library in ("jaxopt", "optimistix"):
        calls[f"{library}, implicit"] = (
            "bilevel_implicit.py", {"library": library, "budget": 10.0, "rates": rates}, [f"Adam({rate})" for rate in rates],
        )  # fmt: skip
    for solver, label in STOCHASTIC.items():
        settings = {"solver": solver, "budget": 2.0, "every": 128, "grid": grid}
        calls[f"benchmark_bilevel, {label}"] = ("bilevel_stochastic.py", settings, [f"{step:g}, ratio {ratio:g}" for step, ratio in grid])
    tracks, absent = {}, {}
    for label, (script, settings, names) in options.progress(list(calls.items()), "peers"):
        answer = run_peer(script, arrays, common | settings, python=options.peers_python, threads=2)
        if not answer.ok:
            absent[label] = answer.status
            continue
        tracks[label] = {
            f"{label}, {setting}": Track(*(list(answer.arrays[f"{part}_{number}"]) for part in ("seconds", "steps", "xs")))
            for number, setting in enumerate(names)
        }
    return tracks, absent


def many_seeds(options: Options, dtype) -> list[dict[str, Any]]:
    rows = []
    seeds, steps = (2, 2) if options.smoke else (32, 20)
    for name, bed in some_beds(options, dtype).items():
        method = bilevel.Method("forward", INNER, OUTER)

        def one(key, data, bed=bed, method=method):
            y = 0.01 * jax.random.normal(key, bed.y.shape, bed.y.dtype)
            state = bilevel.init(bed.problem, bed.x, y, method)
            return lax.fori_loop(0, steps, lambda _, s: bilevel.step(bed.problem, s, method, batch=data)[0], state).x

        keys = jax.random.split(jax.random.key(0), seeds)
        thunks = {"one": functools.partial(jax.jit(one), keys[0], bed.data)}
        batched = {"vmap": None, "map, 8 at once": 8, "map, 4 at once": 4, "map, 1 at once": 1}
        for label, size in dict(list(batched.items())[: 1 if options.smoke else 4]).items():
            if size is None:
                program = jax.jit(lambda keys, data, one=one: jax.vmap(one, (0, None))(keys, data))
            else:
                program = jax.jit(lambda keys, data, one=one, size=size: lax.map(lambda key: one(key, data), keys, batch_size=size))
            thunks[label] = functools.partial(program, keys, bed.data)
        times = options.time(thunks)
        rows += [
            {"problem": name, "batch": label, "seeds": seeds, "time / one seed": times[label].minimum / times["one"].minimum}
            | {"seeds per second": seeds / times[label].minimum}
            for label in thunks
            if label != "one"
        ]
    return rows


def sample_complexity(options: Options, dtype) -> list[dict[str, Any]]:
    """A stochastic quadratic bilevel problem whose exact gradient is known: ‖gradient‖ against samples, log-log."""
    seeds = 4 if options.smoke else 64
    horizons = (32, 64) if options.smoke else (256, 1024, 4096, 16384)
    rng = np.random.default_rng(0)
    mixing = jnp.asarray(rng.normal(size=(8, 4)) / 2, dtype)
    target = jnp.asarray(rng.normal(size=8), dtype)

    def lower(x, y, noise):
        return 0.5 * jnp.sum((y - mixing @ x) ** 2) + noise[:, :8].mean(axis=0) @ y

    def upper(x, y, noise):
        return 0.5 * jnp.sum((y - target) ** 2) + 0.05 * jnp.sum(x**2) + noise[:, 8:].mean(axis=0) @ y

    problem = bilevel.Problem(upper, lower)

    def gradient(x):
        return mixing.T @ (mixing @ x - target) + 0.1 * x

    rows = []
    for label, reduce in ({"variance reduced": True} if options.smoke else {"plain": False, "variance reduced": True}).items():
        norms = []
        for steps in horizons:
            rate = 1.0 / np.sqrt(steps)
            method = bilevel.Method("forward", optax.sgd(min(2 * rate, 0.3)), optax.sgd(min(rate, 0.2)), 1, variance_reduction=reduce)

            def one(key, steps=steps, method=method, rate=rate):
                state = bilevel.init(problem, jnp.zeros(4, dtype), jnp.zeros(8, dtype), method)

                def advance(state, key):
                    noise = jax.random.normal(key, (1, 16), dtype)
                    return bilevel.step(problem, state, method, sigma=0.01, batch=noise, momentum=min(4 * rate, 1.0))[0], state.x

                _, xs = lax.scan(advance, state, jax.random.split(key, steps))
                return jnp.mean(jax.vmap(lambda x: jnp.linalg.norm(gradient(x)))(xs[steps // 2 :]))

            norms.append(float(jnp.mean(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), seeds)))))
        slope = np.polyfit(np.log(horizons), np.log(norms), 1)[0]
        for steps, size in zip(horizons, norms, strict=True):
            rows.append({"directions": label, "samples": steps, "gradient norm": size, "exponent p of samples ~ epsilon^-p": -1 / slope})
    return rows


HPGD = {
    0.001: {1: 0.91, 3: 0.51, 5: 0.46},
    0.003: {1: 0.95, 3: 0.73, 5: 0.29},
    0.005: {1: 1.17, 3: 1.01, 5: 0.87},
}


def four_rooms(options: Options, dtype) -> list[dict[str, Any]]:
    """Contextual charges in a grid world: the single loop beside exact gradients, and the published values of HPGD."""
    if dtype != jnp.float64:
        return [{"temperature": f"{NOT_RUN}: nearly sure policies need float64"}]
    rooms = bilevel_rl.four_rooms(dtype=dtype)
    steps = 2 if options.smoke else 300
    outer, x = optax.adam(0.2), jnp.zeros(105, dtype)

    @jax.jit
    def values(transition, temperature, cost):
        mdp = bilevel.MDP(transition, rooms.initial, rooms.discount)

        def leader(x, log_probs):
            return -jnp.mean(jax.vmap(bilevel.expected_return)(mdp, rooms.leader_reward(x, cost), log_probs))

        def objective(x):
            best = jax.vmap(lambda mdp, reward: bilevel.soft_solve(mdp, reward, temperature, tol=1e-10).value.log_probs)
            return leader(x, best(mdp, rooms.follower_reward(x)))

        problem = bilevel.policy_problem(lambda x: (mdp, rooms.follower_reward(x)), leader, penalty="bellman")
        method = bilevel.Method("central_linear", bilevel.natural_gradient(2 * 104 / temperature), outer)
        start = bilevel.init(problem, x, jnp.zeros((2, 104, 4), dtype), method)
        end = lax.fori_loop(0, steps, lambda _, s: bilevel.step(problem, s, method, sigma=1e-9, batch=temperature)[0], start)

        def exact(_, carry):
            update, state = outer.update(jax.grad(objective)(carry[0]), carry[1])
            return optax.apply_updates(carry[0], update), state

        return -jnp.stack([objective(point) for point in (x, end.x, lax.fori_loop(0, steps, exact, (x, outer.init(x)))[0])])

    rows = []
    pairs = [(temperature, cost) for temperature in HPGD for cost in HPGD[temperature]][: 1 if options.smoke else None]
    for temperature, cost in options.progress(pairs, "four rooms"):
        first, penalty, exact = (
            float(value) for value in values(rooms.transition, jnp.asarray(temperature, dtype), jnp.asarray(cost, dtype))
        )
        rows.append({
            "temperature": temperature, "cost": cost, "start": first, "penalty": penalty, "exact gradients": exact,
            "HPGD, published": HPGD[temperature][cost],
        })  # fmt: skip
    return rows


def draw(figure, curves) -> None:
    axes = figure.add_subplot()
    for difference in {row["difference"]: None for row in curves["errors"]}:
        rows = [row for row in curves["errors"] if row["difference"] == difference]
        axes.loglog([row["sigma"] for row in rows], [row["error"] for row in rows], marker="o", label=difference)
    axes.set_xlabel("sigma")
    axes.set_ylabel("relative error of the hypergradient")
    axes.legend()
