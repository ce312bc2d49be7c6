# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Learning on k of n agents
#
# A global agent wants to be in the mode in which most of 1,000 local agents are. It looks at k of
# them, drawn afresh at every step. How many does it need? The certificate says so, without ever
# solving the problem of 1,000 agents.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxsac
from jaxsac.problems import subsample_q as problems

model = jaxsac.subsample_q.Model(*problems.mode_tracking(3))
num_agents = 1_000
state = jaxsac.subsample_q.population_state(0, [0.2, 0.3, 0.5], num_agents)

# %% [markdown]
# Solve exactly for a few k; bound the value of each policy from below by rollouts on all agents,
# and the best value from above by U_k.

# %%
sizes = [1, 4, 16]
bounds = []
for k in sizes:
    solution = jaxsac.subsample_q.solve(model, k).check()
    bounds.append(
        jaxsac.subsample_q.certify(
            jax.random.key(0), model, solution.value, num_agents, state, num_rollouts=64
        )
    )
    print(
        f"k={k:3d}  {float(bounds[-1].lower):.3f} <= value <= best <= {float(bounds[-1].upper):.3f}"
    )

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(sizes, [float(b.upper) for b in bounds], "v-", label="no policy does better")
axes.plot(sizes, [float(b.lower) for b in bounds], "^-", label="this policy does at least (95 %)")
axes.set(xlabel="k sampled agents", ylabel="discounted reward", xticks=sizes)
axes.legend()
plt.show()

# %% [markdown]
# What it costs: the states of the planning problem, which are the histograms of k agents, against
# the gap that is certified for all 1,000.

# %%
states = [len(jaxsac.subsample_q.HistogramSpace(k, 3)) for k in sizes]
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(states, [float(b.gap) for b in bounds], "s-")
for count, bound, k in zip(states, bounds, sizes, strict=True):
    axes.annotate(f"k = {k}", (count, float(bound.gap) + 0.15))
axes.set(xlabel="histograms of k agents", ylabel="certified gap", ylim=(0, 5.5))
plt.show()

# %% [markdown]
# One run in counts: a million agents cost what a thousand do.

# %%
run = jaxsac.subsample_q.simulate(
    jax.random.key(1),
    model,
    solution.value,
    10**6,
    60,
    jaxsac.subsample_q.population_state(0, [0.2, 0.3, 0.5], 10**6),
)
shares = np.asarray(run.counts) / 10**6
figure, (above, below) = plt.subplots(
    2, 1, figsize=(7, 4.5), height_ratios=(2, 1), sharex=True, layout="constrained"
)
above.plot(shares, label=[f"mode {j}" for j in range(3)])
above.set(ylabel="share of the agents")
above.legend(ncols=3)
below.step(range(60), run.global_states, "k", where="post")
below.set(xlabel="step", ylabel="global mode", yticks=range(3))
plt.show()

# %% [markdown]
# Local agents may act too. Three queues, jobs to give out, and a controller who sees all of them:
# the exact optimum joins the shortest queues. With 1,000 queues, looking at two instead of one
# before choosing is most of what there is to gain.

# %%
queues = jaxsac.subsample_q.LocalActionModel(*problems.dispatch(3))
table = jaxsac.subsample_q.solve(queues, 3).check().value
row = int(jaxsac.subsample_q.HistogramSpace(3, 5).index(np.array([1, 1, 0, 1, 0])))
print(
    "queues of 0, 1 and 3 jobs, two jobs to give: to lengths",
    np.flatnonzero(np.asarray(table.assignment[2, row, :, 1])),
)
looked_at = [1, 2, 3, 5]
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(looked_at, [problems.power_of_k(0, k, 1_000, steps=300)[0] for k in looked_at], "o-")
axes.set(xlabel="queues that a job looks at", ylabel="mean jobs of a queue", xticks=looked_at)
plt.show()
