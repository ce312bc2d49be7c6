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
import time

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
figure, axes = plt.subplots()
axes.plot(sizes, [float(b.upper) for b in bounds], "v-", label="no policy does better")
axes.plot(sizes, [float(b.lower) for b in bounds], "^-", label="this policy does at least (95 %)")
axes.set(xscale="log", xlabel="k sampled agents", ylabel="discounted reward")
axes.legend()
plt.show()

# %% [markdown]
# Time against the gap that it buys: the exact operator over all histograms of k agents, and the gap
# that is certified for all 1,000.

# %%
seconds = []
for k in sizes:
    began = time.perf_counter()
    jax.block_until_ready(jaxsac.subsample_q.solve(model, k).value)
    seconds.append(time.perf_counter() - began)
figure, axes = plt.subplots()
axes.loglog(sizes, seconds, "o-", label="time of a solve [s]")
axes.loglog(sizes, [float(b.gap) for b in bounds], "s--", label="certified gap")
axes.set(xlabel="k sampled agents")
axes.legend()
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
figure, axes = plt.subplots()
axes.plot(shares, label=[f"share in mode {j}" for j in range(3)])
axes.step(
    range(60),
    np.asarray(run.global_states) / 2,
    "k",
    alpha=0.4,
    label="mode of the global agent / 2",
)
axes.set(xlabel="step")
axes.legend()
plt.show()

# %% [markdown]
# Local agents may act too. Three queues, jobs to give out, and a controller who sees all of them:
# the exact optimum joins the shortest queues. With 1,000 queues, looking at two instead of one
# before choosing is most of what there is to gain.

# %%
queues = jaxsac.subsample_q.LocalActionModel(*problems.dispatch(3))
table = jaxsac.subsample_q.solve_local_actions(queues, 3).check().value
row = int(jaxsac.subsample_q.HistogramSpace(3, 5).index(np.array([1, 1, 0, 1, 0])))
print(
    "queues of 0, 1 and 3 jobs, two jobs to give: to lengths",
    np.flatnonzero(np.asarray(table.assignment[2, row, :, 1])),
)
looked_at = [1, 2, 3, 5]
figure, axes = plt.subplots()
axes.plot(looked_at, [problems.power_of_k(0, k, 1_000, steps=300)[0] for k in looked_at], "o-")
axes.set(xlabel="queues that a job looks at", ylabel="mean jobs of a queue")
plt.show()
