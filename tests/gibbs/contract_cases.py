"""The room's functions of arrays, for the contract's tests: they return no Solution."""

import jax
import jax.numpy as jnp
import numpy as np
from contract import Case

from jaxsac import gibbs

COSTS = jnp.asarray([1, 2, 0, 1, 3, 1], jnp.int32)
SET = jnp.asarray([4, 1, -1], jnp.int32)


def problem(seed, dtype):
    rng = np.random.default_rng(seed)
    scores, others = rng.normal(size=(2, 6))
    return {"z": jnp.asarray(scores, dtype), "other": jnp.asarray(others, dtype)}


def numbered(seed, dtype):
    return {**problem(seed, dtype), "seed": jnp.int32(seed)}


def with_background(z, other, **options):
    background = other[:2], jnp.asarray([5, 900], jnp.int32)
    return [gibbs.entropy(z, 3, background=background, **options)]


def divergence(z, other, **options):
    return gibbs.kl(z, other, 3, **options), gibbs.log_prob(SET, z, 3, **options)


def draws(z, other, seed, **options):
    """Sets, and their log-probabilities, which show a NaN."""
    sets = gibbs.sample(jax.random.key(seed), z, 3, 5, **options)
    best = gibbs.mode(z, 3, costs=options.get("costs"))
    return sets, best, gibbs.log_prob(sets, z, 3, **options)


def gradients(z, other, seed, **options):
    """Draws as vectors, and a function's mean over draws with its derivative."""
    key = jax.random.key(seed)
    mean = lambda z: gibbs.expected(key, lambda a: jnp.tanh(a @ other), z, 3, 4, **options)  # noqa: E731
    return gibbs.straight_through(key, z, 3, 5, **options), *jax.value_and_grad(mean)(z)


def with_costs(z, other, seed, **options):
    return draws(z, other, seed, costs=COSTS, **options)


def case(name, solve, problem=problem, differentiate=()):
    return Case(
        name=name,
        problem=problem,
        solve=solve,
        hyper={"temperature": 0.7},
        sweep={"temperature": (0.5, 2.0)},
        poison="z",
        differentiate=differentiate,
        scalar=lambda answer: sum(map(jnp.sum, jax.tree.leaves(answer))),
        bad=[
            ({"z": np.zeros((2, 6))}, r"z must have shape \[M\]"),
            ({"temperature": 0.0}, "temperature must be > 0"),
        ],
        certified=False,
    )


CASES = [
    case("gibbs.kl", divergence, differentiate=("z",)),
    case("gibbs.entropy", with_background),
    case("gibbs.sample", draws, numbered),
    case("gibbs.straight_through", gradients, numbered),
    case("gibbs.sample costs", with_costs, numbered),
]
