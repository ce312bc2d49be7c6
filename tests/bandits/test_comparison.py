"""Several algorithms on the same problems."""

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from jaxsac import bandits

KEY, BALL = jax.random.key(0), bandits.Ball()
ALGORITHMS = {
    "thompson": bandits.thompson(BALL, sparsity=2, sigma=0.1, hold=0.1),
    "e2tc": bandits.e2tc(BALL, sparsity=2, sigma=0.1, horizon=100),
}


def prior(key):
    return jax.random.normal(key, (4,))


def test_every_algorithm_meets_the_same_problems():
    compared = bandits.compare(KEY, ALGORITHMS, prior, sigma=0.1, horizon=100, num_trials=5)
    trial = jax.random.fold_in(KEY, 3)
    first, second = jax.random.split(trial)
    for name, algorithm in ALGORITHMS.items():
        run = bandits.simulate(second, algorithm, prior(first), sigma=0.1, horizon=100)
        together = jax.tree.map(lambda leaf: leaf[3], compared.runs[name])
        for one, other in zip(run, together, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    axes = compared.plot(matplotlib.figure.Figure().subplots())
    np.testing.assert_allclose(
        axes.lines[0].get_ydata(), np.mean(np.asarray(compared.runs["thompson"].regret), axis=0)
    )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(ALGORITHMS)


def test_nothing_to_compare_is_refused():
    for nothing in ({}, [ALGORITHMS["e2tc"]]):
        with pytest.raises(ValueError, match="algorithms must be a dict"):
            bandits.compare(KEY, nothing, jnp.ones(4), sigma=0.1, horizon=10, num_trials=2)  # pyright: ignore
