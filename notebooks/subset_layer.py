# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A layer that chooses 3 of 20 features, trained through its draws
#
# A network may read three of 20 features of each record, and learns which: a selector gives scores,
# a set of three is drawn, a predictor sees those three. Gradients must pass the draw. Five ways to
# do that, on the same problem, over 20 seeds.

# %%
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxsac import gibbs

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import softjax
except ImportError:
    softjax = None
    print("softjax is not installed (it needs Python 3.12): its relaxed top-k is left out.")

M, k, batch, steps, every, seeds = 20, 3, 32, 600, 30, 20

# %% [markdown]
# ## The same scores, two laws
#
# The exact law gives a set the weight exp(Σ z), normalised over all sets of three. Gumbel top-k
# takes the three largest of z + Gumbel noise: one after the other without replacement, another law
# (Plackett–Luce). Scores below: one item stands out, some are likely.

# %%
z = jnp.where(jnp.arange(M) == 0, 4.0, jnp.where(jnp.arange(M) < 5, 1.0, -1.0))
exact = gibbs.marginals(z, k, exactly=True)
at_most = gibbs.marginals(z, k)
noisy = z + jax.random.gumbel(jax.random.key(0), (100_000, M))
gumbel = jnp.mean(jax.nn.one_hot(jax.lax.top_k(noisy, k)[1], M).sum(axis=1), axis=0)
print("P(item in the set)     first  likely  others")
for name, p in (("exactly 3", exact), ("at most 3", at_most), ("Gumbel top-3", gumbel)):
    print(f"{name:21} {p[0]:7.3f} {p[1]:7.3f} {p[-1]:7.3f}")

# %% [markdown]
# ## The problem
#
# The sign of feature 0 says which features matter: the product of features 1 and 2 and feature 3,
# or the same of features 4, 5 and 6. The predictor must be given those three.


# %%
def records(key, count):
    x = jax.random.normal(key, (count, M))
    first = x[:, 1] * x[:, 2] + x[:, 3]
    second = x[:, 4] * x[:, 5] + x[:, 6]
    return x, jnp.where(x[:, 0] > 0, first, second)


def networks(key):
    keys = jax.random.split(key)
    return eqx.nn.MLP(M, M, 64, 1, key=keys[0]), eqx.nn.MLP(2 * M, "scalar", 64, 2, key=keys[1])


def error(predictor, x, y, chosen):
    return (predictor(jnp.concatenate([x * chosen, chosen])) - y) ** 2


# %% [markdown]
# ## Five ways through the draw
#
# * **straight-through**: exact draws forward, the Jacobian of the exact marginals backward
#   (SIMPLE); of exactly three, or of at most three.
# * **score function**: the mean error of four exact draws, with the leave-one-out baseline.
# * **Gumbel top-k**: its hard draw forward, a relaxation (successive softmaxes) backward.
# * **softjax**: no draw, a relaxed top-k of the scores, hard forward and soft backward.


# %%
def straight_through(key, z, **options):
    return gibbs.straight_through(key, z, budget=k, **options)[0]


def gumbel_top_k(key, z):
    noisy = z + jax.random.gumbel(key, z.shape)
    soft, left = jnp.zeros_like(z), noisy
    for _ in range(k):  # Xie and Ermon, IJCAI 2019
        taken = jax.nn.softmax(left)
        soft, left = soft + taken, left + jnp.log(jnp.maximum(1 - taken, 1e-6))
    return hard_forward(noisy, soft)


def relaxed_top_k(key, z):
    return hard_forward(z, softjax.top_k(z, k)[1].sum(axis=0))


def hard_forward(scores, soft):
    hard = jax.nn.one_hot(jax.lax.top_k(scores, k)[1], M).sum(axis=0)
    return soft + jax.lax.stop_gradient(hard - soft)


def by_draw(draw):
    return lambda key, z, predictor, x, y: error(predictor, x, y, draw(key, z))


def by_score_function(key, z, predictor, x, y):
    return gibbs.expected(key, lambda a: error(predictor, x, y, a), z, k, 4, exactly=True)


WAYS = {
    "straight-through, exactly 3": by_draw(lambda key, z: straight_through(key, z, exactly=True)),
    "straight-through, at most 3": by_draw(straight_through),
    "score function, 4 draws": by_score_function,
    "Gumbel top-3, straight-through": by_draw(gumbel_top_k),
}
if softjax is not None:
    WAYS["softjax top-3, straight-through"] = by_draw(relaxed_top_k)

# %% [markdown]
# ## Training
#
# Adam, one compiled scan, `vmap` over the seeds. Every 30 steps: the error on 300 fresh records,
# with the three best scores in place of a draw, the same for all.


# %%
def train(key, loss):
    keys = jax.random.split(key, 3)
    parameters, static = eqx.partition(networks(keys[0]), eqx.is_array)
    x_new, y_new = records(keys[1], 300)
    optimiser = optax.adam(3e-3)

    def mean_loss(parameters, key):
        selector, predictor = eqx.combine(parameters, static)
        x, y = records(key, batch)
        each = jax.vmap(lambda key, x, y: loss(key, selector(x), predictor, x, y))
        return jnp.mean(each(jax.random.split(jax.random.fold_in(key, 1), batch), x, y))

    def step(carry, key):
        parameters, state = carry
        updates, state = optimiser.update(jax.grad(mean_loss)(parameters, key), state)
        return (optax.apply_updates(parameters, updates), state), None

    def evaluated(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        selector, predictor = eqx.combine(carry[0], static)
        best = jax.vmap(lambda x: gibbs.mode(selector(x), k, exactly=True))(x_new)
        chosen = jax.nn.one_hot(best, M).sum(axis=1)
        return carry, jnp.mean(jax.vmap(error, (None, 0, 0, 0))(predictor, x_new, y_new, chosen))

    keys = jax.random.split(keys[2], (steps // every, every))
    return jax.lax.scan(evaluated, (parameters, optimiser.init(parameters)), keys)[1]


keys = jax.random.split(jax.random.key(1), seeds)
curves, seconds = {}, {}
for name, loss in WAYS.items():
    run = jax.jit(jax.vmap(lambda key, loss=loss: train(key, loss))).lower(keys).compile()
    start = time.perf_counter()
    curves[name] = np.asarray(run(keys))
    seconds[name] = time.perf_counter() - start

# %% [markdown]
# ## Error against steps, and against seconds

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
at = every * np.arange(1, steps // every + 1)
for name, curve in curves.items():
    mean, spread = curve.mean(axis=0), curve.std(axis=0) / np.sqrt(seeds)
    for ax, along in zip(axes, (at, at / steps * seconds[name] / seeds), strict=True):
        ax.plot(along, mean, label=name)
        ax.fill_between(along, mean - spread, mean + spread, alpha=0.2)
axes[0].set(xlabel="steps", ylabel="error, mean of 20 seeds", ylim=(0, None))
axes[1].set(xlabel="seconds of this machine, per seed")
axes[0].legend(frameon=False, fontsize=8)
plt.show()
for name, curve in curves.items():
    print(f"{name:33} {curve[:, -1].mean():.3f} ± {curve[:, -1].std() / np.sqrt(seeds):.3f}")

# %% [markdown]
# Per step, the exact marginals are the better direction here: both straight-through estimators end
# lowest, many standard errors below the others. The score function is unbiased and asks for no
# derivative of the predictor by the set (it may be a black box); its variance makes it slow. By
# seconds the Gumbel draw is the cheapest step and leads early on; its law has no probabilities to
# ask for (log-probability, entropy, divergence), and sets of at most three are not in it. One step
# size for all, and the default softness of each: none was tuned.
