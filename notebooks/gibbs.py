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
# # Which tools fit into a context window?
#
# An agent has 60 tools, each described by some hundred tokens, and a window of 1,200. A model has
# scored the tools. Taking the best one after the other wastes some of it, and says nothing about
# how sure the choice is. The exact distribution over all sets within the budget does both.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxsac import gibbs

M, tokens, unit = 60, 1200, 40
keys = jax.random.split(jax.random.key(0), 2)
scores = 1.5 * jax.random.normal(keys[0], (M,))
prices = np.asarray(jax.random.randint(keys[1], (M,), 60, 400))
costs = jnp.asarray(-(-prices // unit), jnp.int32)  # in units of 40 tokens, rounded up
budget = tokens // unit

# %% [markdown]
# ## The best set, and the best by score alone
#
# `mode` is the set of largest total score within the budget, by dynamic programming over costs.

# %%
best = np.asarray(gibbs.mode(scores, budget=budget, costs=costs))
best = best[best >= 0]
order, greedy, left = np.argsort(-np.asarray(scores)), [], budget
for tool in order:
    if scores[tool] > 0 and costs[tool] <= left:
        greedy.append(int(tool))
        left -= int(costs[tool])
for name, chosen in (("best set", best), ("one after the other", np.array(greedy))):
    total = float(scores[chosen].sum())
    print(f"{name:20} {len(chosen):2} tools, score {total:.2f}, {prices[chosen].sum()} tokens")

# %% [markdown]
# ## How sure is that?
#
# The marginals are the probabilities that a tool is in a set drawn from the policy. At a low
# temperature the policy is the best set; at a higher one tools of similar worth share the window.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for temperature in (0.1, 0.5, 2.0):
    p = gibbs.marginals(scores, budget=budget, costs=costs, temperature=temperature)
    left.plot(np.sort(np.asarray(p))[::-1], label=f"temperature {temperature}")
left.set(xlabel="tools, most probable first", ylabel="P(tool is in the set)")
left.legend(frameon=False)

p = gibbs.marginals(scores, budget=budget, costs=costs, temperature=0.5)
in_best = np.isin(np.arange(M), best)
for chosen, label in ((in_best, "in the best set"), (~in_best, "not in it")):
    right.scatter(
        np.asarray(scores)[chosen],
        prices[chosen],
        s=150 * np.asarray(p)[chosen] + 4,
        alpha=0.7,
        label=label,
    )
right.set(
    xlabel="score", ylabel="tokens", ylim=(40, 450), title="size: P(in the set) at temperature 0.5"
)
right.legend(frameon=False, loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# ## What is one more token worth?
#
# The log-partition grows with the window: its growth, times the temperature, is what the policy
# gains. Where the curve is flat, the window is large enough.

# %%
windows = np.arange(2, 81, 3)
values = [
    float(gibbs.log_partition(scores, budget=int(window), costs=costs, temperature=0.5))
    for window in windows
]
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(windows * unit, 0.5 * np.array(values), ".-")
axes.axvline(tokens, color="0.6", lw=0.8)
axes.set(xlabel="tokens", ylabel="temperature · log-partition")
plt.show()

# %% [markdown]
# ## Do samples agree?
#
# Exact draws: 20,000 sets, none above the budget, and their frequencies are the marginals.

# %%
draws = np.asarray(
    gibbs.sample(
        jax.random.key(1), scores, budget=budget, costs=costs, temperature=0.5, num_samples=20_000
    )
)
spent = np.where(draws >= 0, np.asarray(costs)[np.maximum(draws, 0)], 0).sum(axis=1)
frequency = np.bincount(draws[draws >= 0], minlength=M) / len(draws)
deviation = np.abs(frequency - np.asarray(p)).max()
print(f"largest cost {spent.max()} of {budget}; largest deviation {deviation:.4f}")
