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
from scipy.optimize import minimize

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
outer, inner = optax.adam(0.1), optax.sgd(0.2, momentum=0.9, nesterov=True)
start = jnp.zeros(1000), jnp.zeros((64, 10))
sol = bilevel.solve(
    cleaning, *start, data=data, sigma=1e-2, outer=outer, inner=inner, max_steps=150
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
        batch, other = ((uniforms[None], bed.temperature) for uniforms in (first, second))
        gradient = jax.grad(sampled.lower)
        apart = gradient(bed.x, z + sigma * d, batch) - gradient(bed.x, z, other)
        reweighted = sampled.lower_difference(bed.x, z, sigma * d, batch)[0][0]
        return jnp.stack([apart, reweighted]) / sigma

    return jax.vmap(one)(uniforms, others)


terms = [cross_terms(*jax.random.uniform(jax.random.key(0), (2, 300, 100)), s) for s in sigmas]
spread = np.asarray([jnp.sqrt(jnp.sum(jnp.var(term, axis=0), axis=1)) for term in terms])
print(
    f"at sigma = {sigmas[-1]}: {spread[-1, 0]:.0f} with independent trajectories,"
    f" {spread[-1, 1]:.0f} with one reweighted set"
)

# %%
figure, axes = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
for values, label in zip(spread.T, ("independent", "one set, reweighted"), strict=True):
    axes.loglog(sigmas, values, marker="o", label=label)
axes.set(xlabel="sigma", ylabel="spread of the cross term")
axes.set_yticks([30, 100, 300], ["30", "100", "300"])
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# ## A reward learned from preferences
#
# Somebody compares pairs of short segments; a reward is fitted to what they prefer, and a policy
# learns from that reward. The policy then visits other segments than those that were compared. As a
# bilevel problem the reward is fitted to comparisons of what *its own* policy does. Three features
# cannot say all of the true reward, so it matters where the fit is good.

# %%
bed = bilevel_rl.random_reward_bed(3, 2, 3, seed=3)
mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)
segments = bilevel_rl.enumerate_segments(bed.transition, bed.initial, 3)


def preferences(x, log_probs):
    tables = bed.reward(x), bed.leader_reward, log_probs
    return bilevel_rl.preference_loss(segments, *tables, bed.discount) + 0.01 * jnp.sum(x**2)


def taught(x):
    return bilevel.rl.soft_solve(mdp, bed.reward(x), bed.temperature).value.log_probs


def least(objective, x):
    run = minimize(jax.jit(jax.value_and_grad(objective)), np.asarray(x), jac=True)
    return jnp.asarray(run.x, jnp.float32)


problem = bilevel.rl.policy_problem(lambda x: (mdp, bed.reward(x)), preferences)
outer, inner = optax.sgd(0.05, 0.9), bilevel.rl.natural_gradient()
sol = bilevel.solve(
    problem, bed.x, jnp.zeros((3, 2)), data=bed.temperature, outer=outer, inner=inner
).check()
rewards = {
    "compared what an even policy does": least(
        lambda x: preferences(x, jnp.full((3, 2), np.log(0.5))), bed.x
    ),
    "compared what its own policy does": sol.value.x,
    "the same, exact gradients": least(lambda x: preferences(x, taught(x)), bed.x),
}
for name, x in rewards.items():
    print(f"{name}: loss {preferences(x, taught(x)):.4f} on what the policy does")

# %% [markdown]
# ## A leader who moves the dynamics
#
# A Stackelberg game: the leader mixes three moves, softmax([x, 0]), and the mixture is the
# follower's world. The leader commits, the follower answers with the best policy there, and the
# leader's value counts, less 0.05 ‖x‖². The loop knows neither the follower's best answer nor its
# derivative; the background, which does, shows that it walks to the top of the hill.

# %%
game = bilevel_rl.stackelberg()


def world(x):
    transition = game.transition(jnp.append(x, 0.0))
    return bilevel.rl.MDP(transition, game.initial, game.discount), game.follower_reward


def cost(x, log_probs):
    value = bilevel.rl.expected_return(world(x)[0], game.leader_reward, log_probs)
    return 0.05 * jnp.sum(x**2) - value


method = bilevel.Method(inner=inner, outer=optax.sgd(0.1, 0.5))
problem = bilevel.rl.policy_problem(world, cost)


def step(state, _):
    return bilevel.step(problem, state, method, batch=bed.temperature)[0], state.x


state = bilevel.init(problem, jnp.asarray([-2.0, -2.0]), jnp.zeros((8, 4)), method)
path = jax.jit(lambda state: jax.lax.scan(step, state, length=150)[1])(state)


def value(x):
    return -cost(x, bilevel.rl.soft_solve(*world(x), bed.temperature).value.log_probs)


best = least(lambda x: -value(x), path[0])
print(f"leader's value {value(path[0]):.3f}, then {value(path[-1]):.3f}; best {value(best):.3f}")

# %%
grid = jnp.linspace(-5, 2, 25)
surface = jax.jit(jax.vmap(jax.vmap(lambda a, b: value(jnp.stack([a, b])), (0, None)), (None, 0)))
figure, axes = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
figure.colorbar(axes.contourf(grid, grid, surface(grid, grid), 15), label="leader's value")
axes.plot(*path.T, "w.-", ms=3)
axes.plot(*best, "r*", ms=10)
axes.set(xlabel="x of the first move", ylabel="x of the second move")
plt.show()

# %% [markdown]
# ## A follower in somebody else's environment
#
# An environment of gymnax with finitely many states tells its table: `jax.vmap` its `step_env` over
# states and actions. `log_policy` makes an equinox network the policy. With the extra `gymnax`,
# `python -m benchmarks bilevel` steers such a network through gymnax's four rooms (the source is
# `benchmarks/cases/bilevel_gymnax.py`), and counts what the leader gets in gymnax's own episodes.
