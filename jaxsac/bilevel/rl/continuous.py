"""Followers with continuous states and actions: returns and problems from simulated paths."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac._arguments import arguments, choice, function, parts, real, record
from jaxsac.bilevel.problem import Problem, Tree
from jaxsac.bilevel.rl.estimators import Along, discounts, mean_return, sampled_problem
from jaxsac.solution import register


class Process(NamedTuple):
    """A decision process as functions of one state and one action, which are arrays of any shape
    and of M numbers.
    """

    initial: Callable[[jax.Array], Any]  # standard normal numbers [W] -> the first state
    move: Callable[[Any, jax.Array, jax.Array], Any]  # (state, action [M], the same) -> the next
    reward: Callable[[Any, jax.Array], jax.Array]  # (state, action [M]) -> scalar
    discount: Any  # [] in [0, 1)


@register
class Noise(NamedTuple):
    """The standard normal numbers behind n paths of H steps."""

    moves: jax.Array  # [n, H, W], of how each state is reached
    actions: jax.Array  # [n, H, M]

    @property
    def dtype(self) -> Any:
        return getattr(self.moves, "dtype", None)


# state -> (mean [M], log standard deviation [M]) of the action
Policy = Callable[[Any], tuple[jax.Array, jax.Array]]
_NOISE = parts(moves=real("n", "H", "W"), actions=real("n", "H", "M"))
_GRADIENT = choice("score", "pathwise")


class _Path(NamedTuple):
    states: Any  # [n, H, ...]
    actions: jax.Array  # [n, H, M]


def _simulate(noise: Noise, process: Process, policy: Policy) -> _Path:
    def one(moves, actions):
        def step(state, pair):
            reach, draw = pair
            mean, log_deviation = policy(state)
            action = mean + jnp.exp(log_deviation) * draw
            return process.move(state, action, reach), (state, action)

        # the numbers of the last move are never used, and neither are those wrapped round for it
        reached = jnp.roll(moves, -1, axis=0)
        return _loops.scan(step, process.initial(moves[0]), (reached, actions))[1]

    return _Path(*jax.vmap(one)(*noise))


def _told(process: Process, policy: Policy, path: _Path) -> Along:
    def one(state, action):
        mean, log_deviation = policy(state)
        standard = (action - mean) * jnp.exp(-log_deviation)
        log_density = -0.5 * standard**2 - log_deviation - 0.5 * np.log(2 * np.pi)
        return process.reward(state, action), jnp.sum(log_density)

    rewards, taken = jax.vmap(jax.vmap(one))(*path)
    weights = discounts(process.discount, rewards.shape[1], rewards.dtype)
    return Along(rewards, taken, jnp.broadcast_to(weights, rewards.shape))


@arguments(
    noise=_NOISE,
    process=record(Process),
    policy=function("state -> (mean [M], log standard deviation [M])"),
    temperature=real(low=0),
    gradient=_GRADIENT,
)
def simulated_return(
    noise: Noise,
    process: Process,
    policy: Policy,
    temperature: Any = 0.0,
    *,
    gradient: str = "pathwise",
) -> jax.Array:
    """Mean discounted return of n simulated paths under normal actions, with entropy bonus.

        mean_i Σ_{t<H} discount^t [reward(s, a) − temperature log π(a|s)],
        a = mean(s) + exp(log deviation(s)) · noise

    * `noise`: a `Noise`, or the pair of its arrays.
    * `process`: a `Process`; `policy`: state -> (mean [M], log standard deviation [M]);
      `temperature`: ≥ 0.
    * `gradient`: "pathwise", through the simulation, which needs derivatives of `move` and
      `reward`; "score", the policy gradient, of much larger spread, which asks nothing of `move`,
      and sees what the functions close over in `reward` and `policy` alone.

    Returns: a scalar, NaN where the noise is. Truncation leaves out what comes after H steps.

    Source: Sutton et al. 2000; Kingma and Welling 2014 (pathwise); Gaur et al., section 3.
    """
    return _return(Noise(*noise), process, policy, temperature, gradient)


def _return(noise, process, policy, temperature, gradient):
    path = _simulate(noise, process, policy)
    if gradient == "score":
        return mean_return(_told(process, policy, lax.stop_gradient(path)), temperature)
    rewards, taken, weights = _told(process, policy, path)
    return jnp.mean(jnp.sum(weights * (rewards - temperature * taken), axis=1))


@arguments(
    model=function("x -> Process"),
    upper=function("(x, policy, noise) -> scalar"),
    policy=function("(y, state) -> (mean [M], log standard deviation [M])"),
    gradient=_GRADIENT,
)
def simulated_policy_problem(
    model: Callable[[Tree], Process],
    upper: Callable[[Tree, Policy, Noise], jax.Array],
    policy: Callable[[Tree, Any], tuple[jax.Array, jax.Array]],
    *,
    gradient: str = "pathwise",
) -> Problem:
    """minimise_x upper(x, π) where the policy π has the best `simulated_return` in model(x), with
    continuous states and actions: `batch = (Noise, temperature)` goes to `step`, and all copies
    share it.

    * `model`: x -> `Process`.
    * `upper`: (x, policy, noise) -> a sampled scalar with the right gradient, such as
      −simulated_return(noise, the leader's process, policy); its policy is a function of the state.
    * `policy`: (y, state) -> (mean [M], log standard deviation [M]); y may be an equinox network.
    * `gradient`: see `simulated_return`. With "score" x acts through rewards alone, and the
      perturbed copy's paths are those of the other, reweighted; with "pathwise" the copies share
      their noise.

    Source: Gaur et al., arXiv 2503.17644, section 3.
    """

    def at(y):
        return lambda state: policy(y, state)

    def sampled_upper(x, y, noise):
        return upper(x, at(y), Noise(*noise))

    if gradient == "pathwise":
        return Problem(
            lambda x, y, batch: sampled_upper(x, y, batch[0]),
            lambda x, y, batch: -_return(Noise(*batch[0]), model(x), at(y), batch[1], gradient),
        )
    return sampled_problem(
        lambda x, y, noise: _simulate(Noise(*noise), model(x), at(y)),
        lambda x, y, path: _told(model(x), at(y), path),
        sampled_upper,
        reweighted=True,
    )
