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
# # Bilevel penalties: clean a data set, and steer a follower, with gradients only
#
# minimise upper(x, y\*(x)), where y\*(x) minimises lower(x, y). Two copies of the lower level, one of them pulled by sigma times the upper
# level, tell the gradient in x: no Hessian, no linear solve.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxsac import bilevel
from jaxsac.problems import bilevel as problems
from jaxsac.problems import bilevel_rl

# %% [markdown]
# ## Which labels are wrong?
#
# 1,000 digits, half of their labels redrawn at random. x holds a weight for each of them, y a linear classifier fitted with these weights;
# 300 clean digits judge it. One loop moves both. Weights of wrong labels fall.

# %%
data = problems.digits_cleaning(corruption=0.5)
cleaning = bilevel.Problem(upper=problems.cleaning_upper, lower=problems.cleaning_lower)
inner = optax.sgd(0.2, momentum=0.9, nesterov=True)
x0, y0 = jnp.zeros(1000), jnp.zeros((64, 10))
sol = bilevel.solve(cleaning, x0, y0, data=data, sigma=1e-2, outer=optax.adam(0.1), inner=inner, max_steps=150)
weights, wrong = np.asarray(jax.nn.sigmoid(sol.value.x)), np.asarray(data.corrupted)
area = np.mean(weights[~wrong][:, None] > weights[wrong][None, :])
print(f"validation loss {float(sol.stats['upper']):.3f}; a right label outweighs a wrong one with chance {area:.3f}")

# %% [markdown]
# ## A leader who pays a follower
#
# The follower solves an entropy-regularised decision process; the leader changes its reward by x and has an aim of its own. The exact
# gradient is known here (differentiate soft value iteration), so the error of each difference can be seen: forward falls as sigma, the
# linearised central difference as sigma².

# %%
bed = bilevel_rl.random_reward_bed()
mdp = bilevel.MDP(bed.transition, bed.initial, bed.discount)


def model(x):
    return mdp, bed.reward(x)


def leader(x, log_probs):
    return -bilevel.expected_return(mdp, bed.leader_reward, log_probs) + 0.1 * jnp.sum(x**2)


exact = jax.jit(jax.grad(lambda x: leader(x, bilevel.soft_solve(*model(x), bed.temperature).value.log_probs)))(bed.x)
problem = bilevel.policy_problem(model, leader)
sigmas = [0.3, 0.1, 0.03, 0.01]
errors = {}
for difference in ("forward", "central_linear"):
    runs = [
        bilevel.hypergradient(problem, bed.x, jnp.zeros((8, 4)), data=bed.temperature, sigma=s, difference=difference) for s in sigmas
    ]
    errors[difference] = [float(jnp.linalg.norm(run.value - exact) / jnp.linalg.norm(exact)) for run in runs]

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
axes[0].hist([weights[~wrong], weights[wrong]], bins=20, label=["right label", "wrong label"])
axes[0].set_xlabel("learned weight")
axes[0].set_ylabel("digits")
axes[0].legend()
for difference, values in errors.items():
    axes[1].loglog(sigmas, values, marker="o", label=difference)
axes[1].set_xlabel("sigma")
axes[1].set_ylabel("relative error of the hypergradient")
axes[1].legend()
plt.show()
