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
# # Can the kept tools be trusted?
#
# A sparse fit always returns a set of tools. This notebook shows what a log can say about that set,
# what it cannot, and when the theory's k log M samples are enough.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxsac import Groups, control, group_lasso, run_trials, summarise
from jaxsac.problems.control_recovery import gaussian_regression
from jaxsac.problems.tool_logs import sparse_tool_log

# %% [markdown]
# ## A log with two interchangeable tools
#
# 60 tools, 6 of which look at the context. In half of its uses the first of them appears under
# another name, as the last tool: which of the two is used says nothing.

# %%
M, B = 61, 4
truth = sparse_tool_log(
    jax.random.key(0), num_records=3000, num_actions=M - 1, num_features=5, budget=B, num_relevant=6
)
swap = (truth.actions == truth.support[0]) & (
    np.random.default_rng(0).uniform(size=truth.actions.shape) < 0.5
)
log = control.Log(truth.contexts.astype(np.float32), np.where(swap, M - 1, truth.actions))
task = control.Task(log, num_actions=M, budget=B)
solution = control.fit(jax.random.key(1), task).check()
diagnosis = control.diagnose(task, solution, key=jax.random.key(3))
print(diagnosis)

# %%
diagnosis.plot(plt.figure(figsize=(8, 4), layout="constrained").subplots())
plt.show()

# %% [markdown]
# ## What the witness margin says
#
# The margin is positive: at this penalty no other support is optimal. That is a statement about the
# optimisation problem. On contexts that have nothing to do with the tools it is positive all the
# same; the noise level and the half samples tell.

# %%
noise = log._replace(
    contexts=np.random.default_rng(1).normal(size=log.contexts.shape).astype(np.float32)
)
noise_task = control.Task(noise, num_actions=M, budget=B)
chance = control.fit(jax.random.key(1), noise_task, lam=0.5 * diagnosis.lam).check()
warned = control.diagnose(noise_task, chance, key=jax.random.key(3))
print(
    f"{warned.support.size} tools kept by chance, witness margin {warned.witness_margin:.3f}",
    *warned.signatures,
    sep="\n- ",
)

# %% [markdown]
# ## k log M samples, where every sample informs every tool
#
# On a Gaussian design the witness *at the true support* decides whether the fit finds exactly the
# tools that matter. 100 seeds a point, with the 95 % band of the share; measured in k log M the
# curves of different M fall together.

# %%
k, sigma, factors = 4, 0.25, np.array([0.8, 1.2, 1.6, 2.0, 2.5, 3.2, 4.0])


def trial(num_tools, samples):
    groups, support = Groups.equal(num_groups=num_tools, size=1), jnp.arange(num_tools) < k
    lam = 2 * sigma * np.sqrt(2 * np.log(num_tools) / samples)

    def run(key):
        problem = gaussian_regression(key, samples, num_tools, 1, k, sigma)
        witness = control.conditions.oracle_witness(
            group_lasso.Problem(problem.X, problem.y, groups), support, lam
        )
        return (witness.margin > 0) & jnp.all(witness.coef[:k] != 0)

    return run


figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
midpoints = {}
for num_tools in (64, 512):
    samples = np.round(factors * k * np.log(num_tools)).astype(int)
    curve = summarise(
        jnp.stack(
            [run_trials(trial(num_tools, int(t)), jax.random.key(2), 100) for t in samples], axis=1
        )
    )
    mean, (low, high) = np.asarray(curve.mean), curve.band()
    axes.plot(factors, mean, "o-", label=f"M = {num_tools}")
    axes.fill_between(factors, np.clip(low, 0, 1), np.clip(high, 0, 1), alpha=0.2)
    midpoints[num_tools] = float(np.interp(0.5, np.maximum.accumulate(mean), factors))
axes.set(xlabel="samples / (k log M)", ylabel="share of exact supports")
axes.legend(frameon=False)
plt.show()
print(midpoints)
