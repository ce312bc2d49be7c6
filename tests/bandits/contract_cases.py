"""The room's functions, for the contract's tests: they return no Solution."""

import jax
import jax.numpy as jnp
import numpy as np
from contract import Case

from jaxsac import bandits

KEY = jax.random.key(3)


def problem(seed, dtype):
    generator = np.random.default_rng(seed)
    return {"theta": jnp.asarray(generator.permutation([0.9, -0.1, 0.7, 0.2]), dtype)}


def play(algorithm, **options):
    def simulate(theta, sigma):
        return bandits.simulate(
            KEY, algorithm, theta, sigma=sigma, horizon=60, record=jnp.arange(0, 61, 20), **options
        )

    return simulate


def play_arms(theta, sigma):
    arms = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), theta.dtype)
    return play(bandits.lin_ucb(sigma=0.1), offer=arms)(theta, sigma)


def case(name, solve, **changes):
    sigma = {"hyper": {"sigma": 0.1}, "sweep": {"sigma": (0.1, 0.2)}}
    bad = [({"sigma": -1.0}, "sigma must be ≥ 0"), ({"theta": jnp.ones((2, 2))}, "theta must")]
    options = {"problem": problem, "poison": "theta", "certified": False, **sigma, "bad": bad}
    return Case(name=name, solve=solve, **(options | changes))


APSEE = bandits.apsee(bandits.Ball(), sparsity=2, sigma=0.05, radius="hkz")
CASES = [
    case("bandits.simulate", play(APSEE)),
    case("bandits.simulate of a step-wise algorithm", play_arms),
    case(
        "bandits.simulate an action at a time",
        play(bandits.thompson(bandits.Ball(), sparsity=2, sigma=0.1, hold=0.1)),
    ),
    case(
        "bandits.simulate of a proof",
        play(bandits.prove_support(bandits.Ball(), sparsity=2, sigma=0.1)),
    ),
]
