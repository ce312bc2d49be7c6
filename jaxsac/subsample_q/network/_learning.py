"""Environments as functions, the network, and how it is fitted."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxsac import _checks, _loops
from jaxsac._arguments import anything, arguments, key, real, record, size
from jaxsac.solution import Solution, register
from jaxsac.subsample_q.data.histograms import check_size, enumerate_counts
from jaxsac.subsample_q.data.kinds import PLAIN_MODEL
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.exact.table import QTable, trivial_table, uncertified


class Environment(NamedTuple):
    """A global agent above many alike local agents, as functions. States are arrays (or pytrees of
    them) of any kind; actions are 0, ..., num_actions − 1.

    The stage reward is reward_global + the agents' mean of reward_local, as in `Model`.
    """

    draw: Callable[..., Any]  # (key, k) -> (global state, k local states): where to learn
    move_global: Callable[..., Any]  # (key, global state, action) -> global state
    move_local: Callable[..., Any]  # (key, global state, local state, action) -> local state
    reward_global: Callable[..., Any]  # (global state, action) -> []
    reward_local: Callable[..., Any]  # (global state, local state, action) -> []
    describe_global: Callable[..., Any]  # global state -> [p], what the network sees, of order one
    describe_local: Callable[..., Any]  # local state -> [d]
    num_actions: int  # A
    discount: Any  # [], in [0, 1)
    allowed: Callable[..., Any] | None = None  # global state -> bool [A], at least one

    def best(self, global_state: Any, values: jax.Array) -> jax.Array:
        """The best allowed action for `values` [A], int32 []."""
        if self.allowed is not None:
            values = jnp.where(self.allowed(global_state), values, -jnp.inf)
        return jnp.argmax(values).astype(jnp.int32)

    def describe(self, global_state: Any, local_states: Any) -> tuple[jax.Array, jax.Array]:
        """What the network sees of a state: [p] and [k, d]."""
        return self.describe_global(global_state), jax.vmap(self.describe_local)(local_states)

    def rewards(self, global_state: Any, local_states: Any, weights: jax.Array) -> jax.Array:
        """The stage reward of every action, [A]; the weights [k] of the agents sum to one."""

        def one(action):
            local = jax.vmap(lambda state: self.reward_local(global_state, state, action))(
                local_states
            )
            return self.reward_global(global_state, action) + jnp.sum(weights * local)

        return jax.vmap(one)(self.actions())

    def move(self, key: jax.Array, global_state: Any, local_states: Any, action: jax.Array):
        """A next global state and the next states of all agents."""
        global_key, local_key = jax.random.split(key)
        keys = jax.random.split(local_key, jax.tree.leaves(local_states)[0].shape[0])
        moved = jax.vmap(lambda key, state: self.move_local(key, global_state, state, action))
        return self.move_global(global_key, global_state, action), moved(keys, local_states)

    def actions(self) -> jax.Array:
        return jnp.arange(self.num_actions, dtype=jnp.int32)


@arguments(model=PLAIN_MODEL)
def from_model(model: Model) -> Environment:
    """The environment of a `Model`: states are indices, described one-hot; draws are uniform in s_g
    and over the simplex of histograms.
    """
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    kernels, rewards, allowed = model.local_transition, model.local_reward, model.allowed
    kernels = kernels if kernels.ndim == 4 else jnp.repeat(kernels[:, None], A, axis=1)
    rewards = rewards if rewards.ndim == 3 else jnp.repeat(rewards[:, None], A, axis=1)

    def pick(key, chances, **options):
        return jax.random.categorical(key, jnp.log(chances), **options).astype(jnp.int32)

    def draw(key, k):
        global_key, share_key, key = jax.random.split(key, 3)
        shares = jax.random.exponential(share_key, (L,), model.dtype)
        state = jax.random.randint(global_key, (), 0, G, jnp.int32)
        return state, pick(key, shares, shape=(k,))

    return Environment(
        draw=draw,
        move_global=lambda key, g, a: pick(key, model.global_transition[g, a]),
        move_local=lambda key, g, i, a: pick(key, kernels[g, a, i]),
        reward_global=lambda g, a: model.global_reward[g, a],
        reward_local=lambda g, i, a: rewards[g, a, i],
        describe_global=lambda g: jax.nn.one_hot(g, G, dtype=model.dtype),
        describe_local=lambda i: jax.nn.one_hot(i, L, dtype=model.dtype),
        num_actions=A,
        discount=model.discount,
        allowed=None if allowed is None else lambda g: allowed[g],
    )


@register
class Layer(NamedTuple):
    """x ↦ weight x + bias. (Not one of equinox: those carry fields that `jax.export` and `jax.jit`
    do not take.)
    """

    weight: jax.Array  # [outputs, inputs]
    bias: jax.Array  # [outputs]


@register
class QNetwork(NamedTuple):
    """Q(s_g, s_1..s_k, ·) = centre + spread · head(x_g, Σ_i weight_i embed(x_i), 1/√k), [A].

    x are the described states; the weights are 1/k, or h_j / k for counts h. A sum over agents, so
    their order cannot matter, and k is an input, so that one network serves every k.

    Source: Zaheer et al. 2017, deep sets.
    """

    embed: tuple[Layer, ...]  # of the layers' widths [d, width, ..., width]
    head: tuple[Layer, ...]  # of the layers' widths [p + width + 1, width, ..., A]
    centre: jax.Array  # [], in units of the value
    spread: jax.Array  # [], in units of the value

    def __call__(
        self, global_features: jax.Array, local_features: jax.Array, weights: jax.Array, k: Any
    ) -> jax.Array:
        """Values [A] from features [p] and [m, d], weights [m] that sum to one (0 for absent
        agents), and the number of agents.
        """
        embedded = jax.vmap(lambda x: _through(self.embed, x))(local_features)
        mean = jnp.matmul(weights, embedded, precision="highest")
        size = lax.rsqrt(jnp.asarray(k, mean.dtype))[None]
        output = _through(self.head, jnp.concatenate([global_features, mean, size]))
        return lax.stop_gradient(self.centre) + lax.stop_gradient(self.spread) * output


def _through(layers: tuple[Layer, ...], x: jax.Array) -> jax.Array:
    for position, layer in enumerate(layers):
        x = layer.weight @ (x if position == 0 else jax.nn.silu(x)) + layer.bias
    return x


def make_layers(key: jax.Array, widths: tuple[int, ...], dtype: Any) -> tuple[Layer, ...]:
    """Layers between those widths, uniform within ±1/√inputs."""
    layers = []
    for one, inputs, outputs in zip(
        jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True
    ):
        weight_key, bias_key = jax.random.split(one)
        end = inputs**-0.5
        weight = jax.random.uniform(weight_key, (outputs, inputs), dtype, -end, end)
        layers.append(Layer(weight, jax.random.uniform(bias_key, (outputs,), dtype, -end, end)))
    return tuple(layers)


@arguments(network=record(QNetwork), model=PLAIN_MODEL, k=size(1))
def network_table(network: Any, model: Model, k: int) -> QTable:
    """The network's values for every state of `model` with k agents, as the table that `simulate`,
    `evaluate` and `certify` take; its bounds are the trivial ones.

    * `network`: a `QNetwork` or its Solution, that was fitted on `from_model(model)` or describes
      its states alike.
    """
    environment = from_model(model)
    L, G = model.num_local_states, model.num_global_states
    check_size(k, L, 8 * G * (model.num_actions + 4))
    inputs, outputs = network.head[0].weight.shape[-1], network.head[-1].bias.shape[-1]
    width = network.embed[-1].bias.shape[-1]
    _checks.require(
        (network.embed[0].weight.shape[-1], inputs - width - 1, outputs)
        == (L, G, model.num_actions),
        f"network must take L = {L} local states, G = {G} global states and A ="
        f" {model.num_actions} actions: fit it on `from_model(model)`.",
    )
    features = jax.vmap(environment.describe_local)(jnp.arange(L, dtype=jnp.int32))
    shares = jnp.asarray(enumerate_counts(k, L)).astype(model.dtype) / k

    def row(state):
        seen = environment.describe_global(state)
        return jax.vmap(lambda weights: network(seen, features, weights, k))(shares)

    return trivial_table(model, k, lax.map(row, jnp.arange(G, dtype=jnp.int32)))


@arguments(
    batch_size=size(1),
    num_samples=size(1),
    width=size(1),
    depth=size(),
    optimizer=anything("of optax, or None"),
    target_rate=real(low=0, high=1),
)
class Training(eqx.Module):
    """How `learn_network` fits: the size of its steps and of the network, and its optimiser."""

    batch_size: int = eqx.field(static=True, default=128)  # states in a step
    num_samples: int = eqx.field(static=True, default=1)  # draws of each successor
    width: int = eqx.field(static=True, default=64)  # of the hidden layers
    depth: int = eqx.field(static=True, default=2)  # hidden layers, ≥ 0
    # `optimizer`: of optax; None is Adam, its rate falling from 3e-3 to 0 by a cosine
    optimizer: optax.GradientTransformation | None = eqx.field(static=True, default=None)
    target_rate: Any = 0.01  # [], ≥ 0: by how much of the way the slow copy follows in a step


@register
class TrainingState(NamedTuple):
    """What the next call continues from."""

    network: QNetwork
    target: QNetwork  # its slow copy
    optimizer: tuple[jax.Array, ...]  # the leaves of the optimiser's state


@arguments(
    key=key(),
    environment=record(Environment),
    ks=anything("integers ≥ 1: numbers of agents to learn for"),
    num_steps=size(1),
    training=record(Training),
    state=anything("the state of another call, or its Solution"),
)
def learn_network(
    key: jax.Array,
    environment: Environment,
    ks: Sequence[int],
    num_steps: int,
    training: Training | None = None,
    *,
    state: Any = None,
) -> Solution:
    """Fit one Q-network for all numbers of agents in `ks` at once, from fresh draws of the
    environment.

    A step draws `batch_size` states, each with its own k from `ks`, and takes one optimiser step on
    the mean over states and actions of

        (Q(s, a) − y(s, a))² / spread²,
        y = r + discount · mean over num_samples draws of Q'(s', argmax_b Q(s', b)),

    Q' a slow copy of Q that moves by `target_rate` a step (double Q-learning with Polyak
    averaging). The reward of a state is exact given its agents; actions share their random numbers.

    * `key`: consumed.
    * `environment`: make it once, for each has a trace of its own.
    * `ks`, `num_steps`: static.
    * `training`: a `Training`.
    * `state`: that of another call, or its Solution, to go on.

    Returns: a Solution of a `QNetwork` that ends MAX_STEPS: a network cannot certify itself
    (stats["error"] is the largest number; NONFINITE if it diverged; see `network_table` and
    `certify`). stats["loss"] [num_steps]. Batched by `jax.vmap` over keys.

    Raises: ValueError for an empty `ks`, k < 1, or a discount outside [0, 1).

    Sources: the learning variant of arXiv 2403.00222 with function approximation; van Hasselt et
    al. 2016.
    """
    _checks.require(isinstance(ks, Sequence), f"ks must be numbers of agents, got {type(ks)}.")
    _checks.require(
        len(ks) > 0, "ks is empty: give the numbers of agents to learn for, such as (2, 4, 8)."
    )
    ks = tuple(size(1).take("ks", k) for k in ks)
    _checks.require(
        not _checks.is_concrete(environment.discount) or 0 <= float(environment.discount) < 1,
        f"discount must lie in [0, 1), got {environment.discount}.",
    )
    state = state.state if isinstance(state, Solution) else state
    _checks.require(
        state is None or isinstance(state, TrainingState), "state must be that of another call."
    )
    training = Training() if training is None else training

    def features(key):
        return environment.describe(*environment.draw(key, 1))[1]

    dtype = jax.eval_shape(features, key).dtype
    rate = jnp.asarray(training.target_rate, dtype)
    return _learn_network(
        key,
        jnp.asarray(environment.discount, dtype),
        eqx.tree_at(lambda training: training.target_rate, training, rate),
        state,
        functions=environment._replace(discount=None),
        ks=ks,
        num_steps=num_steps,
    )


@functools.cache
def _default_optimizer(num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))


@functools.partial(jax.jit, static_argnames=("functions", "ks", "num_steps"))
def _learn_network(key, discount, training, state, *, functions, ks, num_steps):
    environment = functions._replace(discount=discount)
    optimizer = training.optimizer
    optimizer = _default_optimizer(num_steps) if optimizer is None else optimizer
    make_key, key = jax.random.split(key)
    if state is None:
        network = _make_network(make_key, environment, ks, training)
        state = TrainingState(network, network, tuple(jax.tree.leaves(optimizer.init(network))))
    structure = jax.tree.structure(jax.eval_shape(optimizer.init, state.network))

    def step(state, key):
        network, target = state.network, state.target
        draw_key, target_key = jax.random.split(key)
        keys = jax.random.split(draw_key, training.batch_size)
        drawn = jax.vmap(lambda key: _draw(key, environment, ks))(keys)
        keys = jax.random.split(target_key, training.batch_size)
        wanted = jax.vmap(
            lambda key, one: _target(key, environment, training.num_samples, network, target, one)
        )(keys, drawn)
        features = jax.vmap(environment.describe)(*drawn[:2])

        def loss(network):
            values = jax.vmap(network)(*features, *drawn[2:])
            return jnp.mean(((values - wanted) / lax.stop_gradient(network.spread)) ** 2)

        value, gradient = jax.value_and_grad(loss)(network)
        memory = jax.tree.unflatten(structure, state.optimizer)
        with jax.numpy_dtype_promotion("standard"):  # optax does not pass the strict setting
            updates, memory = optimizer.update(gradient, memory, network)
            moved = optax.apply_updates(network, updates)
            slow = optax.incremental_update(moved, target, training.target_rate)
        after: Any = moved, slow, tuple(jax.tree.leaves(memory))
        return TrainingState._make(after), value

    state, losses = _loops.scan(step, state, jax.random.split(key, num_steps))
    finite = jax.tree.reduce(
        lambda good, leaf: good & jnp.all(jnp.isfinite(leaf)), (losses, state.network), True
    )
    unknown = jnp.where(finite, jnp.finfo(losses.dtype).max, jnp.nan).astype(losses.dtype)
    spread = state.network.spread
    return uncertified(state.network, unknown, spread, num_steps, state, loss=losses)


def _draw(key: jax.Array, environment: Environment, ks: tuple[int, ...]) -> tuple:
    """A state with max(ks) local states, of which k count: (global, locals, weights, k)."""
    size_key, key = jax.random.split(key)
    k = jnp.asarray(ks, jnp.int32)[jax.random.randint(size_key, (), 0, len(ks))]
    share = 1 / k.astype(environment.discount.dtype)
    weights = jnp.where(jnp.arange(max(ks), dtype=jnp.int32) < k, share, 0)
    return (*environment.draw(key, max(ks)), weights, k)


def _target(
    key: jax.Array,
    environment: Environment,
    num_samples: int,
    network: QNetwork,
    target: QNetwork,
    drawn: tuple,
) -> jax.Array:
    """y of the drawn state for every action, [A]."""
    global_state, local_states, weights, k = drawn

    def worth(key, action):
        moved = environment.move(key, global_state, local_states, action)
        features = environment.describe(*moved)
        best = environment.best(moved[0], network(*features, weights, k))
        return target(*features, weights, k)[best]

    def sample(key):
        return jax.vmap(lambda action: worth(key, action))(environment.actions())

    after = jnp.mean(jax.vmap(sample)(jax.random.split(key, num_samples)), axis=0)
    return environment.rewards(global_state, local_states, weights) + environment.discount * after


def _make_network(
    key: jax.Array, environment: Environment, ks: tuple[int, ...], training: Training
) -> QNetwork:
    """A network whose values begin near those of a stage that lasts for ever."""
    embed_key, head_key, key = jax.random.split(key, 3)
    dtype, horizon = environment.discount.dtype, 1 / (1 - environment.discount)
    seen_global, seen_local = environment.describe(*_draw(key, environment, ks)[:2])
    paid = jax.vmap(lambda key: environment.rewards(*_draw(key, environment, ks)[:3]))(
        jax.random.split(key, 1024)
    )
    spread = jnp.maximum(jnp.std(paid) * horizon, jnp.finfo(dtype).tiny ** 0.25)
    width, hidden = training.width, (training.width,) * training.depth
    embed = make_layers(embed_key, (seen_local.shape[-1], *hidden, width), dtype)
    inputs = seen_global.shape[-1] + width + 1
    head = make_layers(head_key, (inputs, *hidden, environment.num_actions), dtype)
    return QNetwork(embed, head, jnp.mean(paid) * horizon, spread)
