"""LinUCB and LinTS: streams of ours, a loop in numpy, and four other libraries."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases.bandits_experiments import SIGMA
from benchmarks.harness import Options, run_peer
from jaxsac import bandits

DIMENSION = 20


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
