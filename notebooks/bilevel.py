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
# minimise upper(x, y\*(x)), where y\*(x) minimises lower(x, y). Two copies of the lower level, one
# of them pulled by sigma times the upper level, tell the gradient in x: no Hessian, no linear
# solve.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxsac import bilevel
from jaxsac.problems import bilevel as problems, bilevel_rl

# %% [markdown]
# ## Which labels are wrong?
#
# 1,000 digits, half of their labels redrawn at random. x holds a weight for each of them, y a
# linear classifier fitted with these weights; 300 clean digits judge it. One loop moves both.
# Weights of wrong labels fall.

# %%
data = problems.digits_cleaning(corruption=0.5)
cleaning = bilevel.Problem(upper=problems.cleaning_upper, lower=problems.cleaning_lower)
inner = optax.sgd(0.2, momentum=0.9, nesterov=True)
sol = bilevel.solve(
    cleaning,
    jnp.zeros(1000),
    jnp.zeros((64, 10)),
    data=data,
    sigma=1e-2,
    outer=optax.adam(0.1),
    inner=inner,
    max_steps=150,
)
weights, wrong = np.asarray(jax.nn.sigmoid(sol.value.x)), np.asarray(data.corrupted)
area = np.mean(weights[~wrong][:, None] > weights[wrong][None, :])
print(
    f"validation loss {float(sol.stats['upper']):.3f};"
    f" a right label outweighs a wrong one with chance {area:.3f}"
)

# %% [markdown]
# ## A leader who pays a follower
#
# The follower solves an entropy-regularised decision process; the leader changes its reward by x
# and has an aim of its own. The exact gradient is known here (differentiate soft value iteration),
# so the error of each difference can be seen: forward falls as sigma, the linearised central
# difference as sigma².

# %%
bed = bilevel_rl.random_reward_bed()
mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)


def model(x):
    return mdp, bed.reward(x)


def leader(x, log_probs):
    return -bilevel.rl.expected_return(mdp, bed.leader_reward, log_probs) + 0.1 * jnp.sum(x**2)


exact = jax.jit(
    jax.grad(lambda x: leader(x, bilevel.rl.soft_solve(*model(x), bed.temperature).value.log_probs))
)(bed.x)
problem = bilevel.rl.policy_problem(model, leader, penalty="value")
sigmas = [0.3, 0.1, 0.03, 0.01]
errors = {}
for difference in ("forward", "central_linear"):
    runs = [
        bilevel.hypergradient(
            problem, bed.x, jnp.zeros((8, 4)), data=bed.temperature, sigma=s, difference=difference
        )
        for s in sigmas
    ]
    errors[difference] = [
        float(jnp.linalg.norm(run.value - exact) / jnp.linalg.norm(exact)) for run in runs
    ]

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
axes[0].hist([weights[~wrong], weights[wrong]], bins=20, label=["right label", "wrong label"])
axes[0].set(xlabel="learned weight", ylabel="digits")
axes[0].legend()
for difference, values in errors.items():
    axes[1].loglog(sigmas, values, marker="o", label=difference)
axes[1].set(xlabel="sigma", ylabel="relative error of the hypergradient")
axes[1].legend()
plt.show()

# %% [markdown]
# ## Why the copies share their samples
#
# The difference of the two copies is divided by sigma. Drawn from trajectories of their own, its
# noise grows as 1 / sigma; one set of trajectories, reweighted for the perturbed policy, has a
# spread that does not depend on sigma.

# %%
z, d = bilevel.hypergradient(problem, bed.x, jnp.zeros((8, 4)), data=bed.temperature).state
sampled = bilevel.rl.sampled_policy_problem(
    model, lambda x, log_probs, uniforms: leader(x, log_probs)
)


@jax.jit
def cross_terms(uniforms, others, sigma):
    """Of each trajectory: the cross term from two independent ones, and from one, reweighted."""

    def one(first, second):
        batch, other, gradient = (
            (first[None], bed.temperature),
            (second[None], bed.temperature),
            jax.grad(sampled.lower),
        )
        reweighted = sampled.lower_difference(bed.x, z, sigma * d, batch)[0][0]
        return (
            jnp.stack(
                [gradient(bed.x, z + sigma * d, batch) - gradient(bed.x, z, other), reweighted]
            )
            / sigma
        )

    return jax.vmap(one)(uniforms, others)


terms = [cross_terms(*jax.random.uniform(jax.random.key(0), (2, 300, 100)), s) for s in sigmas]
spread = np.asarray([jnp.sqrt(jnp.sum(jnp.var(term, axis=0), axis=1)) for term in terms])
print(
    f"at sigma = {sigmas[-1]}: {spread[-1, 0]:.0f} with independent trajectories,"
    f" {spread[-1, 1]:.0f} with one reweighted set"
)

# %% [markdown]
# ## How many samples?
#
# A bandit whose follower and leader are both sampled, 16 pulls a step, and the exact gradient along
# the way. The exponent p in samples ~ epsilon^-p is for a gradient *norm* of epsilon. The paper
# states 4 in its first version and about 3 in the later ones, as upper bounds for bilevel RL in its
# own convention: a slope on one problem is no test of them.

# %%
bandit = bilevel_rl.bandit_bed(3)
pulls = bilevel.rl.MDP(bandit.transition, bandit.initial, bandit.discount)


def objective(x):
    return -jnp.sum(
        jax.nn.softmax(bandit.reward(x) / bandit.temperature, axis=1) * bandit.leader_reward
    ) + 0.5 * jnp.sum(x**2)


pulled = bilevel.rl.sampled_policy_problem(
    lambda x: (pulls, bandit.reward(x)),
    lambda x, log_probs, uniforms: (
        -bilevel.rl.sampled_return(uniforms, pulls, bandit.leader_reward, log_probs)
        + 0.5 * jnp.sum(x**2)
    ),
)
falling = (optax.sgd(lambda t, rate=rate: rate / jnp.sqrt(1.0 + t / 20)) for rate in (0.5, 0.2))
method = bilevel.Method("forward", *falling, inner_steps=2)


def gradient_norms(key):
    def advance(state, key):
        batch = (jax.random.uniform(key, (16, 2)), bandit.temperature)
        return bilevel.step(pulled, state, method, sigma=0.02, batch=batch)[0], jnp.linalg.norm(
            jax.grad(objective)(state.x)
        )

    start = bilevel.init(pulled, jnp.asarray([1.0, -1.0, 1.0]), jnp.zeros((1, 3)), method)
    return jax.lax.scan(advance, start, jax.random.split(key, 4000))[1]


norms = np.asarray(
    jnp.mean(jax.jit(jax.vmap(gradient_norms))(jax.random.split(jax.random.key(0), 16)), axis=0)
)
times = np.geomspace(500, 4000, 6).astype(int)
late = np.asarray([norms[t // 2 : t].mean() for t in times])
print(f"samples ~ epsilon^-{-1 / np.polyfit(np.log(16 * times), np.log(late), 1)[0]:.1f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for values, label in zip(spread.T, ("independent", "one set, reweighted"), strict=True):
    axes[0].loglog(sigmas, values, marker="o", label=label)
axes[0].set(xlabel="sigma", ylabel="spread of the cross term")
axes[0].set_yticks([30, 100, 300], ["30", "100", "300"])
axes[0].minorticks_off()
axes[0].legend()
axes[1].plot(16 * times, late, marker="o")
axes[1].set(xlabel="samples", ylabel="gradient norm")
plt.show()
