"""Q-networks that do not care in which order the agents come, for local states that are too many
for a table, or continuous.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsac import _checks
from jaxsac.solution import Solution, Status
from jaxsac.subsample_q.data.histograms import enumerate_counts
from jaxsac.subsample_q.learn import make_table
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.solver import QTable


class Environment(NamedTuple):
    """A global agent above many alike local agents, as functions. States are arrays (or pytrees of
    them) of any kind.

        draw(key, k) -> (global state, local states with a leading axis k)     where to learn: let
        it cover what may be met move_global(key, global state, action) -> global state
        move_local(key, global state, local state, action) -> local state      of one agent,
        independent of the others reward_global(global state, action), reward_local(global state,
        local state, action) -> [] describe_global(global state) -> [p],  describe_local(local
        state) -> [d]     what the network sees, of order one

    The stage reward is reward_global + the agents' mean of reward_local, as in `Model`. Actions are
    0, ..., num_actions - 1.
    """

    draw: Callable[..., Any]
    move_global: Callable[..., Any]
    move_local: Callable[..., Any]
    reward_global: Callable[..., Any]
    reward_local: Callable[..., Any]
    describe_global: Callable[..., Any]
    describe_local: Callable[..., Any]
    num_actions: int
    discount: Any


class QNetwork(eqx.Module):
    """Q(s_g, s_1..s_k, ·) = centre + spread · head(x_g, sum_i weight_i embed(x_i), 1/sqrt(k)), [A].

    x are the described states; the weights are 1/k, or h_j / k for counts h. A sum over agents, so
    their order cannot matter, and k is an input, so that one network serves every k (Zaheer et al.
    2017, deep sets).
    """

    embed: tuple[eqx.nn.Linear, ...]
    head: tuple[eqx.nn.Linear, ...]
    centre: jax.Array
    spread: jax.Array

    def __call__(
        self, global_features: jax.Array, local_features: jax.Array, weights: jax.Array, k: Any
    ) -> jax.Array:
        """Values [A] from features [p] and [m, d], weights [m] that sum to one (0 for absent
        agents), and the number of agents.
        """
        mean = jnp.matmul(
            weights,
            jax.vmap(lambda x: _perceptron(self.embed, x))(local_features),
            precision="highest",
        )
        size = lax.rsqrt(jnp.asarray(k, mean.dtype))[None]
        output = _perceptron(self.head, jnp.concatenate([global_features, mean, size]))
        return lax.stop_gradient(self.centre) + lax.stop_gradient(self.spread) * output


def _perceptron(layers: tuple[eqx.nn.Linear, ...], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.silu(layer(x))
    return layers[-1](x)


class _Training(NamedTuple):
    """What the next call continues from: the parameters, their slow copy, and the optimiser's
    state.
    """

    network: Any
    target: Any
    optimizer: Any


def from_model(model: Model) -> Environment:
    """The environment of a `Model`: states are indices, described one-hot; draws are uniform in s_g
    and over the simplex of histograms.
    """
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    kernels = (
        model.local_transition
        if model.action_drives_agents
        else jnp.repeat(model.local_transition[:, None], A, axis=1)
    )
    rewards = (
        model.local_reward
        if model.local_reward.ndim == 3
        else jnp.repeat(model.local_reward[:, None], A, axis=1)
    )

    def draw(key, k):
        global_key, share_key, key = jax.random.split(key, 3)
        shares = jax.random.exponential(share_key, (L,), model.dtype)
        return jax.random.randint(global_key, (), 0, G, jnp.int32), jax.random.categorical(
            key, jnp.log(shares), shape=(k,)
        ).astype(jnp.int32)

    return Environment(
        draw=draw,
        move_global=lambda key, g, a: jax.random.categorical(
            key, jnp.log(model.global_transition[g, a])
        ).astype(jnp.int32),
        move_local=lambda key, g, i, a: jax.random.categorical(
            key, jnp.log(kernels[g, a, i])
        ).astype(jnp.int32),
        reward_global=lambda g, a: model.global_reward[g, a],
        reward_local=lambda g, i, a: rewards[g, a, i],
        describe_global=lambda g: jax.nn.one_hot(g, G, dtype=model.dtype),
        describe_local=lambda i: jax.nn.one_hot(i, L, dtype=model.dtype),
        num_actions=A,
        discount=model.discount,
    )


def learn_network(
    key: jax.Array,
    environment: Environment,
    ks: Sequence[int],
    num_steps: int,
    *,
    batch_size: int = 128,
    num_samples: int = 1,
    width: int = 64,
    depth: int = 2,
    optimizer: optax.GradientTransformation | None = None,
    target_rate: Any = 0.01,
    state: Any = None,
) -> Solution:
    """Fit one Q-network for all numbers of agents in `ks` at once, from fresh draws of the
    environment.

    A step draws `batch_size` states, each with its own k from `ks`, and takes one optimiser step on
    the mean over states and actions of

        (Q(s, a) - y(s, a))² / spread²,   y = r + discount · mean over num_samples draws of Q'(s',
        argmax_b Q(s', b)),

    Q' a slow copy of Q that moves by `target_rate` a step (double Q-learning with Polyak
    averaging). The reward of a state is exact given its agents; actions share their random numbers.

    `optimizer`: any of optax; None is Adam, its rate falling from 3e-3 to 0 by a cosine. `state`:
    that of another call, to go on. Returns Solution(QNetwork, MAX_STEPS, stats, state): a network
    cannot certify itself (NONFINITE if it diverged; see `network_table` and `certify`).
    stats["loss"] [num_steps]. Batched by jax.vmap over keys. One trace for each environment: make
    it once. ValueError for an empty `ks`, k < 1, or a discount outside [0, 1). Sources: the
    learning variant of arXiv 2403.00222 with function approximation; van Hasselt et al. 2016.
    """
    _checks.require(len(ks) > 0, "ks is empty: give the numbers of agents to learn for, such as (2, 4, 8).")
    sizes = tuple(_checks.static_integer("ks", k, 1) for k in ks)
    num_steps = _checks.static_integer("num_steps", num_steps, 1)
    _checks.require(
        not _checks.is_concrete(environment.discount) or 0 <= float(environment.discount) < 1,
        f"discount must lie in [0, 1), got {environment.discount}.",
    )
    shape = (
        _checks.static_integer("batch_size", batch_size, 1),
        _checks.static_integer("num_samples", num_samples, 1),
    )
    network_shape = (_checks.static_integer("width", width, 1), _checks.static_integer("depth", depth, 0))
    chosen = _default_optimizer(num_steps) if optimizer is None else optimizer
    functions = environment._replace(discount=None)
    dtype = jax.eval_shape(
        lambda key: environment.describe_local(
            jax.tree.map(lambda s: s[0], environment.draw(key, 1)[1])
        ),
        key,
    ).dtype
    discount, rate = (
        jnp.asarray(environment.discount, dtype),
        _checks.real_scalar("target_rate", target_rate, dtype, 0.0),
    )
    return _learn_network(
        key, discount, rate, state, functions, sizes, num_steps, shape, network_shape, chosen
    )


@functools.cache
def _default_optimizer(num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8, 9))
def _learn_network(
    key, discount, rate, state, environment, ks, num_steps, shape, network_shape, optimizer
):
    batch_size, num_samples = shape
    most, dtype = max(ks), discount.dtype
    actions = jnp.arange(environment.num_actions, dtype=jnp.int32)
    sizes = jnp.asarray(ks, jnp.int32)
    make_key, key = jax.random.split(key)

    def describe(global_state, local_states):
        return environment.describe_global(global_state), jax.vmap(environment.describe_local)(
            local_states
        )

    def draw(key):
        size_key, key = jax.random.split(key)
        k = sizes[jax.random.randint(size_key, (), 0, len(ks))]
        weights = jnp.where(jnp.arange(most, dtype=jnp.int32) < k, 1 / k.astype(dtype), 0)
        return (*environment.draw(key, most), weights, k)

    def rewards(global_state, local_states, weights):
        def one(action):
            local = jax.vmap(lambda state: environment.reward_local(global_state, state, action))(
                local_states
            )
            return environment.reward_global(global_state, action) + jnp.sum(weights * local)

        return jax.vmap(one)(actions)

    def successors(key, global_state, local_states, action):
        global_key, local_key = jax.random.split(key)
        moved = jax.vmap(
            lambda key, state: environment.move_local(key, global_state, state, action)
        )
        return environment.move_global(global_key, global_state, action), moved(
            jax.random.split(local_key, most), local_states
        )

    def targets(key, network, target, drawn):
        global_state, local_states, weights, k = drawn

        def worth(key, action):
            features = describe(*successors(key, global_state, local_states, action))
            best = jnp.argmax(network(*features, weights, k))
            return target(*features, weights, k)[best]

        keys = jax.random.split(key, num_samples)
        after = jnp.mean(
            jax.vmap(lambda key: jax.vmap(lambda action: worth(key, action))(actions))(keys), axis=0
        )
        return rewards(global_state, local_states, weights) + discount * after

    def make(key):
        embed_key, head_key, key = jax.random.split(key, 3)
        width, depth = network_shape
        global_state, local_states, *_ = draw(key)
        num_global, num_local = (
            features.shape[-1] for features in describe(global_state, local_states)
        )
        seen = jax.vmap(lambda key: rewards(*draw(key)[:3]))(jax.random.split(key, 1024))
        horizon = 1 / (1 - discount)
        spread = jnp.maximum(jnp.std(seen) * horizon, jnp.finfo(dtype).tiny ** 0.25)

        def layers(key, *sizes):
            pairs = zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
            return tuple(
                eqx.nn.Linear(inputs, outputs, dtype=dtype, key=key)
                for key, inputs, outputs in pairs
            )

        hidden = (width,) * depth
        embed = layers(embed_key, num_local, *hidden, width)
        head = layers(head_key, num_global + width + 1, *hidden, environment.num_actions)
        return QNetwork(embed, head, jnp.mean(seen) * horizon, spread)

    if state is None:
        network = make(make_key)
        state = _Training(network, network, optimizer.init(network))

    def step(training, key):
        network, target = training.network, training.target
        draw_key, target_key = jax.random.split(key)
        drawn = jax.vmap(draw)(jax.random.split(draw_key, batch_size))
        wanted = jax.vmap(lambda key, one: targets(key, network, target, one))(
            jax.random.split(target_key, batch_size), drawn
        )
        features = jax.vmap(describe)(*drawn[:2])

        def loss(network):
            values = jax.vmap(network)(*features, *drawn[2:])
            return jnp.mean(((values - wanted) / lax.stop_gradient(network.spread)) ** 2)

        value, gradient = jax.value_and_grad(loss)(training.network)
        with jax.numpy_dtype_promotion("standard"):  # optax does not pass the strict setting
            updates, memory = optimizer.update(gradient, training.optimizer, training.network)
        moved = optax.apply_updates(training.network, updates)
        slow = jax.tree.map(lambda old, new: old + rate * (new - old), training.target, moved)
        return _Training(moved, slow, memory), value

    state, losses = lax.scan(step, state, jax.random.split(key, num_steps))
    finite = jnp.all(jnp.isfinite(losses)) & jax.tree.reduce(
        lambda good, leaf: good & jnp.all(jnp.isfinite(leaf)), state.network, jnp.bool_(True)
    )
    status = jnp.where(finite, jnp.int32(Status.MAX_STEPS), jnp.int32(Status.NONFINITE))
    return Solution(
        state.network, status, {"loss": losses, "num_steps": jnp.int32(num_steps)}, state
    )


def network_table(network: QNetwork, model: Model, k: int) -> QTable:
    """The network's values for every state of `model` with k agents, as the table that `simulate`,
    `evaluate` and `certify` take.

    Its bounds are the trivial ones. For a network that was fitted on `from_model(model)`, or one
    that describes its states alike.
    """
    environment = from_model(model)
    counts = jnp.asarray(enumerate_counts(k, model.num_local_states))
    locals_ = jax.vmap(environment.describe_local)(
        jnp.arange(model.num_local_states, dtype=jnp.int32)
    )
    weights = counts.astype(model.dtype) / k

    def row(global_state):
        return jax.vmap(
            lambda weights: network(environment.describe_global(global_state), locals_, weights, k)
        )(weights)

    return make_table(model, k, lax.map(row, jnp.arange(model.num_global_states, dtype=jnp.int32)))
