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
# # Which sensors matter?
#
# A machine has 80 sensors; each gives five numbers (mean, spread, three frequencies). Six of them
# say something about wear. The group lasso keeps or drops a sensor as a whole.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxsac import Groups, group_lasso

sensors, size, records, true = 80, 5, 240, 6
keys = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(keys[0], (records, sensors * size))
strength = jnp.repeat(jnp.where(jnp.arange(sensors) < true, 0.4, 0.0), size)
coef = strength * jax.random.normal(keys[1], (sensors * size,))
y = X @ coef + 0.5 * jax.random.normal(keys[2], (records,))
groups = Groups.equal(num_groups=sensors, size=size)
problem = group_lasso.Problem(X, y, groups)


def norms(values):
    return jnp.linalg.norm(values.reshape(*values.shape[:-1], sensors, size), axis=-1)


# %% [markdown]
# ## All penalties at once
#
# A path of 50 penalties, each with its own certificate. The dashed line is the penalty that noise
# alone would hardly exceed: `simulated_lam` redraws the noise and looks. At first it takes all of y
# for noise, which is too much; what is left after a fit is nearer, so it is repeated.

# %%
path = group_lasso.path(problem, num_lams=50, min_ratio=0.05).check()
lams, sizes = np.asarray(path.stats["lam"]), np.asarray(norms(path.value.coef))
fitted = None
for _ in range(3):
    lam = float(group_lasso.simulated_lam(keys[3], problem, fitted))
    solution = group_lasso.solve(problem, lam).check()
    fitted = group_lasso.refit(problem, solution)
    print(f"penalty {lam:.3f} keeps {int(solution.stats['num_active'])} sensors")
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
axes.semilogx(lams, sizes[:, true:], color="0.75", lw=0.8)
axes.semilogx(lams, sizes[:, :true], color="C3")
axes.axvline(lam, color="k", ls="--", lw=0.8)
axes.invert_xaxis()
axes.set(xlabel="penalty", ylabel="norm of a sensor", title="red: the six that matter")
plt.show()

# %% [markdown]
# ## The choice
#
# At the simulated penalty the kept sensors are shrunk; `refit` fits them again without it. The
# degrees of freedom count what the fit has spent.

# %%
kept = np.flatnonzero(np.asarray(norms(solution.value.coef)))
freedom = float(group_lasso.degrees_of_freedom(problem, solution))
print("kept", kept, f"with {freedom:.1f} degrees of freedom")
for name, value in (("penalised", solution.value), ("refitted", fitted.value)):
    error = float(jnp.linalg.norm(value.coef - coef) / jnp.linalg.norm(coef))
    print(f"{name:10} relative error {error:.2f}")

# %% [markdown]
# ## How far can the set be trusted?
#
# Half of the records, 50 times and each time the other half as well: how often is each sensor kept
# at the same penalty? Those that matter stay; others come and go.

# %%
stability = group_lasso.stability_selection(jax.random.key(1), problem, lam, num_pairs=50)
share = np.asarray(stability.frequency)
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.bar(np.arange(sensors), share, color=np.where(np.arange(sensors) < true, "C3", "0.6"))
axes.set(xlabel="sensor", ylabel="share of half samples", ylim=(0, 1.02))
plt.show()

# %% [markdown]
# ## A derivative of the answer
#
# The solution can be differentiated in the penalty, in y and in X. How does the error on new
# records change with the penalty?

# %%
fresh = jax.random.normal(jax.random.key(2), (2000, sensors * size))


def risk(lam):
    return jnp.mean((fresh @ (group_lasso.solve(problem, lam).value.coef - coef)) ** 2)


slope = jax.jit(jax.vmap(jax.value_and_grad(risk)))(jnp.asarray(lams[::7]))
for value, error, change in zip(lams[::7], *slope, strict=True):
    print(f"penalty {value:.4f}  error {float(error):.4f}  slope {float(change):+.2f}")
