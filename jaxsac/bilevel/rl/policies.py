"""Bilevel RL as problems for the penalty solvers: the lower level is a policy optimisation, exact
or sampled.

`model(x) -> (MDP, reward [S, A])` says how the upper variable shapes the lower level's rewards, or
its dynamics, or both.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxsac._arguments import anything, arguments, choice, function, real
from jaxsac.bilevel.paired import PairedOptimizer
from jaxsac.bilevel.problem import Problem, Tree
from jaxsac.bilevel.rl.tabular import MDP, SoftValues, expected_return, only_available, soft_solve

Model = Callable[[Tree], tuple[MDP, jax.Array]]
LogPolicy = Callable[[Tree], jax.Array]
# A change of logits by as much is another policy; longer where a difference is to be seen above
# rounding.
_LOGITS = {"bellman": 1.0, "value": 8.0}


class _PolicyProblem(Problem):
    """A problem whose lower minimiser is known by other means.

    `distance`: (x, y, temperature) -> how far the policy is from the best one, as a share.
    """

    distance: Callable[..., jax.Array] | None = eqx.field(static=True, default=None)
    # (x, y, temperature) -> what the lower level's curvature is like, entry for entry of y
    metric: Callable[..., Tree] | None = eqx.field(static=True, default=None)
    # (x, y, temperature) -> the minimiser
    guess: Callable[..., Tree] | None = eqx.field(static=True, default=None)
    unit: float | None = eqx.field(static=True, default=None)  # the length on which `lower` changes


@arguments(logits=real(...))
def softmax_policy(logits: jax.Array) -> jax.Array:
    """log π [..., S, A] of a table of logits [..., S, A]."""
    return jax.nn.log_softmax(logits, axis=-1)


def restricted(mdp: MDP, log_probs: jax.Array) -> jax.Array:
    """The policy without what is not available."""
    if mdp.available is None:
        return log_probs
    return softmax_policy(only_available(mdp, log_probs))


def _best(mdp: MDP, reward: jax.Array, temperature: Any) -> SoftValues:
    """The best policy's values, as good as the dtype allows."""
    reachable = 4 * jnp.finfo(reward.dtype).eps / (1 - mdp.discount)
    return soft_solve(mdp, reward, temperature, tol=reachable).value


@arguments(
    model=function("x -> (MDP, reward [S, A])"),
    upper=function("(x, log π) -> scalar"),
    penalty=choice("value", "bellman"),
    log_policy=function("y -> log π [S, A]"),
)
def policy_problem(
    model: Model,
    upper: Callable[[Tree, jax.Array], jax.Array],
    *,
    penalty: str = "bellman",
    log_policy: LogPolicy = softmax_policy,
) -> Problem:
    """minimise_x upper(x, log π) where π is the best policy of model(x) at a temperature; exact.

        penalty="value":    lower = −(initial · V_π),  the return with entropy bonus of the policy
        penalty="bellman":  lower = mean over s of Σ_a π(a|s) [log π(a|s) − A*(s, a) / temperature]
                            with A* = Q* − V*,  the divergence from the best policy: strongly
                            convex in π(·|s)

    Both have the minimiser π = softmax(Q* / temperature), the first where every state is visited;
    the second has no units. `data=temperature` goes to the solver; so regularisation attenuates by
    calling `solve` with falling temperatures and the last `state`, without a new compilation. For
    tables `natural_gradient()` is the inner optimiser that does not mind nearly deterministic
    policies.

    * `model`: x -> (MDP, reward [S, A]); contexts: C processes on a leading axis of every array,
      with log π [C, S, A]; lower is the mean over them.
    * `upper`: (x, log π) -> scalar; log π is −inf where an action is not available.
    * `log_policy`: y -> log π [S, A], where y is a table of logits, or an equinox network; what is
      not available is taken out of it.

    Source: Gaur et al., arXiv 2503.17644, section 3; Shen et al., arXiv 2402.06886 (both
    penalties).
    """

    def value_lower(mdp, reward, log_probs, temperature):
        return -expected_return(mdp, reward, log_probs, temperature)

    def bellman_lower(mdp, reward, log_probs, temperature):
        best = _best(mdp, reward, temperature)
        # against V* and not as Q*: nothing large is to cancel
        excess = only_available(mdp, log_probs, 0.0) - (best.q - best.v[:, None]) / temperature
        return jnp.mean(jnp.sum(jnp.exp(log_probs) * excess, axis=1))

    of_process = value_lower if penalty == "value" else bellman_lower

    def lower(x, y, temperature):
        mdp, reward = model(x)
        log_probs = restricted(mdp, log_policy(y))
        if reward.ndim == 2:
            return of_process(mdp, reward, log_probs, temperature)
        return jnp.mean(jax.vmap(of_process, (0, 0, 0, None))(mdp, reward, log_probs, temperature))

    def upper_of_policy(x, y, temperature):
        del temperature
        return upper(x, restricted(model(x)[0], log_policy(y)))

    def shares(mdp, reward, log_probs, temperature):
        """The wrong and the right probability of all actions but the best policy's favourite, over
        the states, by their visits where these weigh in `lower`.
        """
        best = _best(mdp, reward, temperature).log_probs
        visits = jax.grad(expected_return, 1)(mdp, reward, best)
        weights = jnp.sum(visits, axis=1, keepdims=True) if penalty == "value" else 1.0
        favourite = jax.nn.one_hot(jnp.argmax(best, axis=1), best.shape[1], dtype=best.dtype)
        weights, chance = (1 - favourite) * weights, jnp.exp(best)
        return jnp.stack(
            [jnp.sum(weights * abs(jnp.exp(log_probs) - chance)), jnp.sum(weights * chance)]
        )

    def distance(x, y, temperature):
        mdp, reward = model(x)
        each = shares if reward.ndim == 2 else jax.vmap(shares, (0, 0, 0, None))
        log_probs = restricted(mdp, log_policy(y))
        wrong, right = jnp.sum(each(mdp, reward, log_probs, temperature).reshape(-1, 2), axis=0)
        return wrong / jnp.maximum(right, jnp.finfo(right.dtype).tiny)

    if log_policy is not softmax_policy:  # other classes may not hold the best policy
        return _PolicyProblem(upper_of_policy, lower)

    def best_values(x, temperature):
        mdp, reward = model(x)
        each = _best if reward.ndim == 2 else jax.vmap(_best, (0, 0, None))
        return each(mdp, reward, temperature)

    def best_policy(x, y, temperature):
        return only_available(model(x)[0], best_values(x, temperature).log_probs, 0.0)

    def probabilities(x, y, temperature):
        """Fisher's metric of a table of logits, up to a shift of each state's."""
        mdp = model(x)[0]
        probs = only_available(mdp, jnp.exp(restricted(mdp, softmax_policy(y))), 1.0)
        return jnp.maximum(probs, jnp.finfo(y.dtype).tiny)

    def bellman_difference(x, y, step, temperature):
        """Nothing is subtracted that is nearly equal: probabilities change by factors."""
        mdp = model(x)[0]
        log_probs = restricted(mdp, softmax_policy(y))
        probs = jnp.exp(log_probs)
        log_probs = only_available(mdp, log_probs, 0.0)
        rows = probs.size // probs.shape[-1]

        def over_actions(table):
            return jnp.sum(table, axis=-1, keepdims=True)

        moved = step - jnp.log1p(over_actions(probs * jnp.expm1(step)))
        gained = probs * jnp.expm1(moved)

        def advantage(x):
            best = best_values(x, temperature)
            return (best.q - best.v[..., None]) / temperature

        excess = log_probs + moved - advantage(x)
        mean = over_actions((probs + gained) * excess)
        risen = over_actions(gained * excess + probs * moved)
        in_y = gained * (excess - mean) + probs * (moved - risen)
        in_x = eqx.filter_grad(lambda x: -jnp.sum(gained * advantage(x)))(x)
        return jax.tree.map(lambda leaf: leaf / rows, (in_x, in_y))

    return _PolicyProblem(
        upper_of_policy,
        lower,
        distance=distance,
        metric=probabilities,
        guess=best_policy,
        unit=_LOGITS[penalty],
        lower_difference=bellman_difference if penalty == "bellman" else None,
    )


@arguments(rate=real(above=0), available=anything("[..., A] of True and False"))
def natural_gradient(rate: Any = 1.0, available: jax.Array | None = None) -> PairedOptimizer:
    """Natural gradient steps on tables of logits [..., A], with the metric of z's policy shared by
    all copies: an inner optimiser.

        z ← z − rate · R · u_z / π_z,   d ← d − rate · R · u_d / π_z

    with R rows in the table. It is the Fisher metric's inverse up to a shift of each state's
    logits, and so as quick at nearly deterministic policies as at even ones. Build it once, with a
    number: each object is compiled anew.

    * `rate`: > 0; 1 goes to the minimiser of penalty="bellman" in one step, at any temperature.
      For penalty="value" take (1 − discount) / temperature or less.
    * `available`: [..., A], that of the `MDP`, or None.

    Source: Kakade 2001.
    """

    def step(u, z):
        def of_table(gradient, logits):
            there = None if available is None else jnp.asarray(available).astype(bool)
            probs = jax.nn.softmax(logits, axis=-1, where=there)
            probs = jnp.maximum(probs, jnp.finfo(logits.dtype).tiny)
            probs = probs if there is None else jnp.where(there, probs, 1.0)
            rows = logits.size // logits.shape[-1]
            return -jnp.asarray(rate, probs.dtype) * rows * gradient / probs

        return jax.tree.map(of_table, u, z)

    return PairedOptimizer(
        lambda z, d: (),
        lambda u, state, z: (step(u, z), state),
        lambda u, state, d, z: (step(u, z), state),
    )
