"""Good calls of the room's functions, for the test that makes them wrong."""

import jax
import numpy as np

KEY = jax.random.key(0)
Z = np.array([0.3, -1.0, 2.0, 0.5])


def asked(**more):
    return lambda: {"z": Z, "budget": 2, **more}


OPTIONS = {"exactly": False, "temperature": 1.5, "given": np.array([1]), "at_least": 1}
SETS = np.array([[0, 2], [1, -1]], np.int32)


def rows(**more):
    return lambda: {"scores": Z[:, None], "budget": 2, **more}


REST = np.zeros((3, 1))
CALLS = {
    "gibbs.rows.log_partition": rows(log_rest=REST),
    "gibbs.rows.log_size_weights": rows(),
    "gibbs.rows.marginals": rows(log_rest=REST),
    "gibbs.Policy": asked(**OPTIONS),
    "gibbs.log_partition": asked(**OPTIONS),
    "gibbs.marginals": asked(**OPTIONS),
    "gibbs.entropy": asked(**OPTIONS),
    "gibbs.mode": asked(**OPTIONS),
    "gibbs.kl": asked(other=-Z),
    "gibbs.log_prob": asked(a=SETS),
    "gibbs.sample": asked(key=KEY, num_samples=3),
    "gibbs.straight_through": asked(key=KEY, num_samples=3),
    "gibbs.expected": asked(key=KEY, num_samples=3, f=np.sum),
    "numpyro.Subset": asked(temperature=1.5, exactly=False, costs=np.array([1, 1, 2, 1])),
}
