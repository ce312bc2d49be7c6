"""The real-data tables of the bilevel room: cost of a step, time to target beside the peers, and
many seeds at once.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.cases import bilevel_second_order
from benchmarks.harness import Options, run_peer
from jaxsac import bilevel
from jaxsac.problems import bilevel as problems


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
    weights = bilevel.Problem(
        problems.feature_weights_upper, problems.feature_weights_lower, project_x=clip_weights
    )
    cleaning = bilevel.Problem(problems.cleaning_upper, problems.cleaning_lower)
    return {
        "breast_cancer, weight per feature": Bed(
            weights, cancer, jnp.zeros(30, dtype), jnp.zeros(30, dtype), 3000
        ),
        "digits, cleaning": Bed(
            cleaning, digits, jnp.zeros(1000, dtype), jnp.zeros((64, 10), dtype), 600
        ),
    }


def some_beds(options: Options, dtype) -> dict[str, Bed]:
    return dict(list(real_beds(dtype).items())[: 1 if options.smoke else 2])


OUTER = optax.adam(optax.exponential_decay(0.1, 200, 0.8, end_value=0.02))
INNER = optax.sgd(0.2, momentum=0.9, nesterov=True)


def costs(options: Options, dtype) -> list[dict[str, Any]]:
    rows = []
    cases = {
        "forward": lambda K: 2 * K + 3,
        "central": lambda K: 2 * K + 4,
        "central_linear": lambda K: 3 * K + 3,
    }
    for name, bed in some_beds(options, dtype).items():
        gradient = jax.jit(
            jax.grad(
                lambda y, x, data, bed=bed: (
                    bed.problem.lower(x, y, data) + 0.01 * bed.problem.upper(x, y, data)
                )
            )
        )
        thunks: dict[str, Callable[[], Any]] = {
            "gradient": functools.partial(gradient, bed.y, bed.x, bed.data)
        }
        for difference in ("forward",) if options.smoke else cases:
            for K in (1,) if options.smoke else (1, 5):
                method = bilevel.Method(difference, INNER, OUTER, K)
                step = jax.jit(
                    lambda state, data, p=bed.problem, m=method: bilevel.step(
                        p, state, m, batch=data
                    )
                )
                thunks[f"{difference} {K}"] = functools.partial(
                    step, bilevel.init(bed.problem, bed.x, bed.y, method), bed.data
                )
        times = options.time(thunks)
        for label, timing in times.items():
            if label != "gradient":
                difference, K = label.split()
                count = cases[difference](int(K))
                ratio = timing.minimum / times["gradient"].minimum
                row = {
                    "problem": name,
                    "difference": difference,
                    "K": int(K),
                    "gradients": count,
                    "time / gradient": ratio,
                }
                rows.append(
                    row
                    | {
                        "time / (gradients x gradient)": ratio / count,
                        "microseconds": 1e6 * timing.minimum,
                    }
                )
    return rows


def exact_upper(bed: Bed) -> Callable[[Any], float]:
    """upper(x, y*(x)), the lower level solved anew."""

    @jax.jit
    def evaluate(x):
        y = bilevel.argmin(bed.problem.lower, bed.y, bed.data).checked(x).value
        return bed.problem.upper(x, y, bed.data)

    return lambda x: float(evaluate(jnp.asarray(x, bed.x.dtype)))


class Track(NamedTuple):
    """Solver seconds, steps and x at each checkpoint."""

    seconds: list[float]
    steps: list[int]
    xs: list[Any]


def run_track(
    bed: Bed, first: Any, step: Callable[..., Any], chunk: int, budget: float, max_steps: int
) -> Callable[[], Track]:
    """A thunk that runs compiled steps from a first state, which begins with x, and times its
    chunks.
    """

    @jax.jit
    def advance(state, data):
        return lax.fori_loop(0, chunk, lambda _, state: step(state, data), state)

    jax.block_until_ready(advance(first, bed.data))

    def run() -> Track:
        state, spent, seconds, steps, xs = first, 0.0, [], [], []
        while spent < budget and len(steps) * chunk < max_steps:
            start = time.perf_counter()
            state = jax.block_until_ready(advance(state, bed.data))
            spent += time.perf_counter() - start
            seconds.append(spent)
            steps.append((len(steps) + 1) * chunk)
            xs.append(np.asarray(state[0]))
        return Track(seconds, steps, xs)

    return run


def in_turns(runs: dict[str, Callable[[], Track]], repeats: int) -> dict[str, Track]:
    """Each run `repeats` times, one after the other; its chunks at their least time, for what else
    the machine does only adds.
    """
    rounds = [{label: run() for label, run in runs.items()} for _ in range(repeats)]
    least = {}
    for label in runs:
        tracks = [round[label] for round in rounds]
        length = min(len(track.steps) for track in tracks)
        chunks = np.stack([np.diff(track.seconds[:length], prepend=0.0) for track in tracks]).min(
            axis=0
        )
        least[label] = Track(
            list(np.cumsum(chunks)), tracks[0].steps[:length], tracks[0].xs[:length]
        )
    return least


def penalty(bed: Bed, difference: str) -> tuple[Any, Callable[..., Any]]:
    method = bilevel.Method(difference, INNER, OUTER)

    def step(state, data):
        return bilevel.step(bed.problem, state, method, batch=data)[0]

    return bilevel.init(bed.problem, bed.x, bed.y, method), step


def second_order(
    bed: Bed, inner_steps: int, linear_steps: int | None
) -> tuple[Any, Callable[..., Any]]:
    init, step = bilevel_second_order.loop(bed.problem, INNER, OUTER, inner_steps, linear_steps)
    return init(bed.x, bed.y), step


def time_to_target(options: Options, dtype) -> list[dict[str, Any]]:
    rows = []
    for name, bed in options.progress(list(some_beds(options, dtype).items()), "time to 99 %"):
        max_steps = 20 if options.smoke else bed.steps
        methods = {
            "penalty, forward": (*penalty(bed, "forward"), 10),
            "penalty, central_linear": (*penalty(bed, "central_linear"), 10),
            "SOBA, same loop": (*second_order(bed, 1, None), 10),
            "implicit, same loop, K = 20": (*second_order(bed, 20, 20), 5),
        }
        if options.smoke:
            methods = {label: methods[label] for label in list(methods)[::2]}
        runs = {label: run_track(bed, *method, 5.0, max_steps) for label, method in methods.items()}
        tracks = in_turns(runs, 1 if options.smoke else 7)
        peers, absent = ({}, {}) if options.smoke else peer_tracks(options, name, bed)
        for by_setting in peers.values():
            tracks |= by_setting
        evaluate = exact_upper(bed)
        start = evaluate(bed.x)
        strides = {label: max(1, len(t.xs) // 100) for label, t in tracks.items()}
        values = {
            label: [evaluate(x) for x in t.xs[:: strides[label]]] for label, t in tracks.items()
        }
        target = start - 0.99 * (start - np.nanmin([min(v) for v in values.values()]))
        table = {}
        for label, t in tracks.items():
            hit = next(
                (i * strides[label] for i, value in enumerate(values[label]) if value <= target),
                None,
            )
            table[label] = {
                "problem": name,
                "method": label,
                "best": float(np.nanmin(values[label])),
                "target": target,
                "seconds to 99 %": "not reached" if hit is None else t.seconds[hit],
                "steps to 99 %": "-" if hit is None else int(t.steps[hit]),
                "microseconds per step": 1e6 * t.seconds[-1] / int(t.steps[-1]),
            }
        rows += [table[label] for label in methods]
        rows += [
            min((table[label] for label in by_setting), key=rank) for by_setting in peers.values()
        ]
        rows += [
            {"problem": name, "method": label, "best": status} for label, status in absent.items()
        ]
    return rows


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """A peer's best setting: the soonest to the target, else the lowest value."""
    seconds = row["seconds to 99 %"]
    return (np.inf if isinstance(seconds, str) else seconds, row["best"])


STOCHASTIC = {
    "saba": "SABA",
    "soba": "SOBA",
    "amigo": "AmIGO",
    "stocbio": "StocBiO",
    "f2sa": "F2SA",
}


def peer_tracks(
    options: Options, name: str, bed: Bed
) -> tuple[dict[str, dict[str, Track]], dict[str, str]]:
    """For each peer its tracks by setting; and the status of those that did not run."""
    arrays = {
        field: value
        for field, value in bed.data._asdict().items()
        if field in problems.Split._fields
    }
    cleaning = "digits" in name
    common = {"problem": "cleaning" if cleaning else "weights", "dtype": str(options.dtype)}
    rates = [0.03, 0.1, 0.3]
    ratios = (1e-2, 1e-3, 1e-4) if cleaning else (1.0, 1e-1, 1e-2)
    grid = [(step, ratio) for step in (0.1, 0.5) for ratio in ratios]
    calls: dict[str, tuple[str, dict[str, Any], list[str]]] = {}
    for library in ("jaxopt", "optimistix"):
        calls[f"{library}, implicit"] = (
            f"bilevel/{library}",
            {"budget": 10.0, "rates": rates},
            [f"Adam({rate})" for rate in rates],
        )
    for solver, label in STOCHASTIC.items():
        settings = {"solver": solver, "budget": 2.0, "every": 128, "grid": grid}
        calls[f"benchmark_bilevel, {label}"] = (
            "bilevel/benchmark_bilevel",
            settings,
            [f"{step:g}, ratio {ratio:g}" for step, ratio in grid],
        )
    tracks, absent = {}, {}
    for label, (peer, settings, names) in options.progress(list(calls.items()), "peers"):
        answer = run_peer(peer, arrays, common | settings, python=options.peers_python, threads=2)
        if not answer.ok:
            absent[label] = answer.status
            continue
        tracks[label] = {
            f"{label}, {setting}": Track(
                *(list(answer.arrays[f"{part}_{number}"]) for part in ("seconds", "steps", "xs"))
            )
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
            return lax.fori_loop(
                0, steps, lambda _, s: bilevel.step(bed.problem, s, method, batch=data)[0], state
            ).x

        keys = jax.random.split(jax.random.key(0), seeds)
        thunks = {"one": functools.partial(jax.jit(one), keys[0], bed.data)}
        batched = {"vmap": None, "map, 8 at once": 8, "map, 4 at once": 4, "map, 1 at once": 1}
        for label, size in dict(list(batched.items())[: 1 if options.smoke else 4]).items():
            if size is None:
                program = jax.jit(lambda keys, data, one=one: jax.vmap(one, (0, None))(keys, data))
            else:
                program = jax.jit(
                    lambda keys, data, one=one, size=size: lax.map(
                        lambda key: one(key, data), keys, batch_size=size
                    )
                )
            thunks[label] = functools.partial(program, keys, bed.data)
        times = options.time(thunks)
        rows += [
            {
                "problem": name,
                "batch": label,
                "seeds": seeds,
                "time / one seed": times[label].minimum / times["one"].minimum,
            }
            | {"seeds per second": seeds / times[label].minimum}
            for label in thunks
            if label != "one"
        ]
    return rows
