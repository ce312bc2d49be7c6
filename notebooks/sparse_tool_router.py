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
# # A sparse tool router, from a log
#
# An agent has hundreds of tools, and a task needs a handful. The log says in which contexts which
# tools were used. Which tools depend on the context at all, and how much data does it take to find
# them?

# %%
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxsac import Groups, control, designs, gibbs, group_lasso, run_trials, summarise
from jaxsac.problems.tool_logs import sparse_tool_log

# %% [markdown]
# ## The log
#
# 4,000 records over 400 tools, at most 4 in a record. Only 8 tools look at the context; the others
# come and go at a fixed rate. A simulated log has the advantage that the truth is known.

# %%
M, B = 400, 4
truth = sparse_tool_log(
    jax.random.key(0), num_records=4000, num_actions=M, num_features=6, budget=B, num_relevant=8
)
log = control.Log(
    truth.contexts.astype(np.float32), truth.actions, truth.utilities.astype(np.float32)
)
print("the first records:", *(sorted(set(row.tolist()) - {-1}) for row in truth.actions[:5]))

# %% [markdown]
# ## The fit
#
# `fit` maximises the likelihood of the logged sets under the budgeted Gibbs policy, with a penalty
# on each tool's weights. The penalty is just above what pure noise would reach (`lam="simulated"`),
# and the duality gap over all tools proves the answer. The penalty also shrinks what it keeps; a
# refit on the kept tools, without it, undoes that.

# %%
sol = control.fit(jax.random.key(1), log, num_actions=M, budget=B).check()
policy = control.fit(jax.random.key(1), log, num_actions=M, budget=B, refit=True).check().value
print(f"kept {policy.support.tolist()}\ntrue {truth.support.tolist()}")
print(
    f"relative gap {sol.stats['gap'] / sol.stats['scale']:.1e} after {sol.stats['num_steps']} steps"
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
names = [str(tool) for tool in policy.support]
left.bar(names, np.linalg.norm(sol.value.coef, axis=1), color="0.8", label="penalised fit")
left.plot(names, np.linalg.norm(policy.coef, axis=1), "o", label="refit")
left.plot(
    truth.support.astype(str), np.linalg.norm(truth.weights, axis=1), "k_", ms=15, label="truth"
)
left.set(
    xlabel="kept tool", ylabel="strength ‖θ‖", title="Tools that look at the context", ylim=(0, 2.2)
)
left.legend(ncols=3)

contexts = jax.random.normal(jax.random.key(2), (200, 6), jnp.float32)
fitted = jax.vmap(lambda context: gibbs.marginals(policy.scores(context), budget=B))(contexts)
true_scores = jnp.asarray(truth.intercept)[None] + contexts @ jnp.zeros((6, M)).at[
    :, truth.support
].set(truth.weights.T)
true = jax.vmap(lambda scores: gibbs.marginals(scores, budget=B))(true_scores)
right.loglog(true.ravel(), fitted.ravel(), ",", color="0.6", label="other tools")
right.loglog(
    true[:, truth.support].ravel(),
    fitted[:, truth.support].ravel(),
    ".",
    ms=3,
    label="tools that matter",
)
right.axline((1e-3, 1e-3), (1, 1), color="k", lw=0.8)
right.set(
    xlabel="true probability of use",
    ylabel="fitted probability of use",
    title="Marginals in 200 new contexts",
)
right.legend()
plt.show()

# %% [markdown]
# Only the kept tools are deployed. The file is plain arrays and JSON, checked when it is read.

# %%
with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    policy.pruned().save(file.name)
    deployed = control.load_policy(file.name)
print(
    f"{deployed.num_actions} of {M} tools; in the first context:",
    deployed.act(contexts[0], fill=True).tolist(),
)

# %% [markdown]
# ## How many records does it take?
#
# 200 seeds for each number of tools: random sets of 4 tools are tried, each pays the sum of its
# tools' values, 4 tools out of M have any. The group lasso keeps exactly those once each tool was
# seen often enough: against T·B/M, uses per tool, the curves fall together.

# %%
uses = jnp.array([10.0, 25, 40, 60, 80, 110])


def recovery(M, q=4, k=4, noise=1.0):
    records = int(uses[-1]) * M // B
    groups = Groups.equal(num_groups=M, size=q)

    def trial(key):
        keys = jax.random.split(key, 4)
        theta = jax.random.normal(keys[0], (k, q), jnp.float32)
        theta = (
            jnp.zeros((M, q), jnp.float32)
            .at[:k]
            .set(theta / jnp.linalg.norm(theta, axis=1, keepdims=True))
        )
        contexts = jax.random.normal(keys[1], (records, q), jnp.float32)
        actions = jax.vmap(lambda key: jax.random.permutation(key, M)[:B])(
            jax.random.split(keys[2], records)
        )
        X = designs.BudgetedChoice(actions, contexts, M)
        y = X.predict(theta.ravel()) + noise * jax.random.normal(keys[3], (records,), jnp.float32)

        def recovered(uses):
            size = uses * M / B
            lam = 1.1 * noise * jnp.sqrt(B / M / size) * (jnp.sqrt(q) + jnp.sqrt(2 * jnp.log(M)))
            sol = group_lasso.solve(
                X,
                y,
                groups,
                lam,
                sample_weight=jnp.where(jnp.arange(records) < size, records / size, 0),
            )
            return jnp.all(
                jnp.any(sol.value.coef.reshape(M, q) != 0, axis=1) == (jnp.arange(M) < k)
            )

        return jax.vmap(recovered)(uses)  # the first T records of one log, for all T at once

    return trial


# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
curves = {
    M: summarise(run_trials(recovery(M), jax.random.key(3), 200, batch_size=50, progress=True))
    for M in (24, 48)
}
for M, curve in curves.items():
    axes.plot(uses, curve.mean, ".-", label=f"M = {M} tools")
    axes.fill_between(uses, *curve.band(0.95), alpha=0.2)
axes.set(
    xlabel="uses per tool, T·B/M",
    ylabel="share of 200 seeds",
    title="All tools that matter kept, and no other",
    ylim=(-0.02, 1.02),
)
axes.legend()
plt.show()
