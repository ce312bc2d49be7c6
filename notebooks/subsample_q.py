# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # From recordings to a certified policy for 1,000 agents
#
# A controller wants to be in the mode in which most local agents are, and changing the mode costs a
# little. All it has is a simulator, or recordings. It plans for k agents, looks at k of them at
# every step, and wants to know what that loses on all 1,000.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxsac import subsample_q as sq
from jaxsac.problems import subsample_q as problems

# %% [markdown]
# ## Data
#
# Any simulator in Python will do: `reset` begins an episode, `step` takes an action. This one moves
# its agents one by one. We record 4,000 steps of 100 agents under random actions.

# %%
true = problems.mode_tracking(3)  # known to the simulator, not to the planner
generator = np.random.default_rng(0)
mode, agents, steps_left = 0, np.zeros(0, int), 0


def reset(num_agents=100, shares=None):
    global mode, agents, steps_left
    shares = generator.dirichlet(np.ones(3)) if shares is None else shares
    mode, steps_left = 0, 100
    agents = generator.choice(3, num_agents, p=shares)
    return mode, agents


def step(action):
    global mode, agents, steps_left
    paid, earned = true.global_reward[mode, action], true.local_reward[mode][agents]
    rows = true.local_transition[mode][agents].cumsum(axis=1)
    agents = (generator.random((len(agents), 1)) > rows).sum(axis=1)
    mode = int(generator.choice(3, p=true.global_transition[mode, action]))
    steps_left -= 1
    return mode, agents, paid, earned, steps_left == 0


recordings = sq.record(reset, step, lambda mode, agents: generator.integers(3), 4_000)
print(f"{len(recordings)} episodes of {len(recordings[0].actions)} steps")

# %% [markdown]
# ## Model
#
# Every move of every agent counts. What was never tried would be treated as the worst that there
# is; here everything was.

# %%
found = sq.estimate(recordings, 3, 3, 3, discount=0.9)
model = found.model
print("pairs of a mode and an action that were never tried:", int((found.global_visits == 0).sum()))
for name in ("global_transition", "local_transition"):
    error = np.abs(np.asarray(getattr(model, name)) - getattr(true, name)).max()
    print(f"largest error of {name}: {error:.3f}")

# %% [markdown]
# ## Solve
#
# The states of the problem for k agents are their histograms: exact, and cheap.

# %%
solutions = {k: sq.solve(model, k).check() for k in (2, 8, 32)}
for k, solution in solutions.items():
    print(f"k = {k:2d}: {solution.value.value.size:5d} states, certified to 1e-4 of the range")

# %% [markdown]
# ## Certify
#
# What does each policy lose on 1,000 agents, against the best policy that sees all of them? The
# bound needs no solution for 1,000: it comes from the largest k that was solved, and rollouts
# estimate the rest.

# %%
state = sq.population_state(0, [0.2, 0.3, 0.5], 1_000)
bounds = {
    k: sq.certify(jax.random.key(0), model, each, 1_000, state, upper=solutions[32])
    for k, each in solutions.items()
}
for k, bound in bounds.items():
    print(f"k = {k:2d}: {float(bound.lower):.2f} <= its value <= best <= {float(bound.upper):.2f}")

# %%
sizes = list(bounds)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(sizes, [float(b.upper) for b in bounds.values()], "v-", label="no policy does better")
axes.plot(sizes, [float(b.lower) for b in bounds.values()], "^-", label="this one does (95 %)")
axes.set(xlabel="k sampled agents", ylabel="discounted reward", xscale="log", xticks=sizes)
axes.set_xticks(sizes, labels=sizes)
axes.legend()
plt.show()

# %% [markdown]
# ## Act
#
# Back to the simulator, with 1,000 agents of whom most begin in mode 2: at each step the policy
# looks at 32 of them, drawn afresh.

# %%
policy = solutions[32].value
seen = reset(1_000, [0.2, 0.3, 0.5])
shares, modes, paid = [], [], 0.0
for key in jax.random.split(jax.random.key(1), 100):
    shares.append(np.bincount(seen[1], minlength=3) / 1_000)
    modes.append(seen[0])
    *seen, cost, earned, done = step(int(policy.act(key, seen[0], seen[1])))
    paid += 0.9 ** (len(modes) - 1) * (cost + earned.mean())
print(f"discounted reward of this run: {paid:.2f}")

# %%
figure, (above, below) = plt.subplots(
    2, 1, figsize=(7, 4.5), height_ratios=(2, 1), sharex=True, layout="constrained"
)
above.plot(np.array(shares), label=[f"mode {j}" for j in range(3)])
above.set(ylabel="share of the agents")
above.legend(ncols=3)
below.step(range(100), modes, "k", where="post")
below.set(xlabel="step", ylabel="global mode", yticks=range(3))
plt.show()

# %% [markdown]
# The certificate is about the estimated model: it says what looking at k agents loses, not what
# the estimate does. `certify(..., interval="bounded")` holds for every law of the losses, and
# `choose_k` raises k until the gap is as small as you ask.
