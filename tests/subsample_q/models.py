"""Models and oracles of this room, in plain numpy."""

import itertools

import numpy as np

from jaxsac import subsample_q as sq


def random_arrays(seed, G=3, A=2, L=3, local=None):
    generator = np.random.default_rng(seed)
    return (
        generator.dirichlet(np.ones(G), (G, A)),
        generator.dirichlet(np.ones(L), (G, L)) if local is None else local,
        generator.normal(size=(G, A)),
        generator.normal(size=(G, L)),
    )


def random_model(seed, G=3, A=2, L=3, discount=0.8, dtype=np.float64, local=None):
    return sq.Model(
        *(array.astype(dtype) for array in random_arrays(seed, G, A, L, local)), discount
    )


def hard_kernels(seed, L):
    """Local kernels that break a careless pivot: random, sparse, permutations, low rank, equal
    rows, birth-death, absorbing.
    """
    generator = np.random.default_rng(seed)
    random = generator.dirichlet(np.ones(L), L)
    birth_death = 0.3 * np.eye(L) + 0.5 * np.eye(L, k=1) + 0.2 * np.eye(L, k=-1)
    birth_death[0, 0] += 0.2
    birth_death[-1, -1] += 0.5
    return {
        "random": random,
        "diagonal": 0.5 * random + 0.5 * np.eye(L),
        "sparse": generator.dirichlet(0.1 * np.ones(L), L),
        "permutation": np.eye(L)[generator.permutation(L)],
        "low_rank": generator.dirichlet(np.ones(2), L) @ random[:2],
        "equal_rows": np.tile(random[0], (L, 1)),
        "birth_death": birth_death,
        "absorbing": np.eye(L)[np.zeros(L, int)],
    }


def tuple_kernel(P, k):
    """Distribution of the next histogram from each one by enumerating all L^k joint moves: an
    oracle without histogram algebra.
    """
    L = len(P)
    space = sq.HistogramSpace(k, L)
    kernel = np.zeros((len(space), len(space)))
    for row, counts in enumerate(space.table):
        agents = np.repeat(np.arange(L), counts)
        for states in itertools.product(range(L), repeat=k):
            after = np.bincount(states, minlength=L)
            kernel[row, int(space.index(after.astype(np.int32)))] += np.prod(
                P[agents, list(states)]
            )
    return kernel


def brute_force_q(model, k, sweeps=400):
    """Value iteration in numpy on the kernel of `tuple_kernel`."""
    Pg, Pl, rg, rl = (
        np.asarray(a, float)
        for a in (
            model.global_transition,
            model.local_transition,
            model.global_reward,
            model.local_reward,
        )
    )
    counts = sq.HistogramSpace(k, Pl.shape[-1]).table
    kernels = np.stack([tuple_kernel(P, k) for P in Pl])
    reward = rg[:, None, :] + (rl @ counts.T / k)[:, :, None]
    q = np.zeros(reward.shape)
    for _ in range(sweeps):
        expected = np.einsum("gnm,gac,cm->gna", kernels, Pg, q.max(-1))
        q = reward + float(model.discount) * expected
    return q
