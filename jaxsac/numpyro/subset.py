"""The Gibbs policy over budgeted sets as a distribution of numpyro."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from jaxsac import _checks, gibbs
from jaxsac._arguments import anything, arguments, flag, integer, real, size


class Subset(Distribution):
    """Sets drawn from the Gibbs policy over budgeted sets: a distribution for numpyro models.

        π(a) ∝ exp(Σ_{j ∈ a} z_j / temperature),   |a| ≤ budget

    An event is a set as tool indices, int32 [W] padded with −1, as in `jaxsac.gibbs`, and as logs
    of sets are kept. The density is exact, and differentiable by z and by the temperature: what
    NUTS and SVI need where sets are observed. Batches of z are the batch of the distribution; sets
    observed under one z, in a plate, share its expansion.

    * `z`: scores [..., M], float32 or float64; −inf is a tool that is not available.
    * `budget`: ≥ 0, the largest number of tools, or the largest total cost; static.
    * `exactly`: sets of exactly `budget` tools (or total cost); static.
    * `costs`: integer costs [M], ≥ 0, shared by the batch; concrete, since they decide W.
    * `temperature`: > 0, a scalar or of the batch's shape.
    * `validate_args`: as everywhere in numpyro.

    `log_prob` is −inf outside the support: duplicate or unknown indices, too many tools.
    `marginals` are the chances of the tools, [..., M]; numpyro's `entropy()` is in nats. `mode` is
    the most probable set.

        def model(sets):  # int32 [T, 5]
            z = numpyro.sample("z", dist.Normal(0, 1).expand([M]).to_event(1))
            with numpyro.plate("records", len(sets)):
                numpyro.sample("sets", Subset(z, budget=5), obs=sets)

    Source: `jaxsac.gibbs`.
    """

    arg_constraints = {  # noqa: RUF012 - as numpyro has it
        "z": constraints.real_vector,
        "temperature": constraints.positive,
    }
    pytree_data_fields = ("z", "temperature", "costs")
    pytree_aux_fields = ("budget", "exactly")

    @arguments(
        z=real(...),
        budget=size(),
        exactly=flag(),
        costs=integer("M", low=0),
        temperature=real(..., above=0),
        validate_args=anything("True, False or None"),
    )
    def __init__(
        self,
        z: Any,
        budget: int,
        *,
        exactly: bool = False,
        costs: Any = None,
        temperature: Any = 1.0,
        validate_args: bool | None = None,
    ):
        _checks.require(z.ndim >= 1, f"z must have shape [..., M], got {list(z.shape)}: scores.")
        batch_shape = np.broadcast_shapes(z.shape[:-1], temperature.shape)
        self.z = jnp.broadcast_to(z, (*batch_shape, z.shape[-1]))
        self.temperature = jnp.broadcast_to(temperature, batch_shape)
        _checks.require(
            _checks.is_concrete(costs),
            "costs decide the width of the sets and must be concrete: close over an array.",
        )
        if costs is not None:
            _checks.check_shape("costs", costs, z.shape[-1:])
        self.budget, self.exactly, self.costs = budget, exactly, costs
        _checks.require(
            costs is not None or not exactly or self.budget <= z.shape[-1],
            f"exactly=True needs budget <= M, got budget={budget} and M={z.shape[-1]}.",
        )
        width = self.budget
        if costs is not None:  # how many of the cheapest are within the budget
            ordered = np.sort(np.asarray(costs, np.int64))
            width = int(np.sum(np.cumsum(ordered) <= self.budget))
        super().__init__(batch_shape, (width,), validate_args=validate_args)

    @property
    def _batch(self) -> tuple[int, ...]:
        """The batch's shape; under `jax.vmap` of a distribution what is left of it."""
        return self.z.shape[:-1]

    def _each(self, function: Any, *arrays: Any) -> Any:
        """function(z [M], *arrays, temperature=...) of every member of the batch, which is the
        first axis of the arrays; not batched where there is no batch.
        """
        call = partial(function, **_options(self))
        if not self._batch:
            return call(*arrays, self.z, temperature=self.temperature)
        flat = lambda x: x.reshape(-1, *x.shape[len(self._batch) :])  # noqa: E731
        each = jax.vmap(lambda z, temperature, *arrays: call(*arrays, z, temperature=temperature))
        found = each(flat(self.z), flat(self.temperature), *arrays)
        return found.reshape(self._batch + found.shape[1:])

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Independent exact draws, `sample_shape` + batch shape + event shape."""
        assert key is not None
        count = math.prod(sample_shape)
        keys = jax.random.split(key, math.prod(self._batch)) if self._batch else key
        draw = partial(gibbs.sample, num_samples=count)
        draws = jnp.moveaxis(self._each(draw, keys), -2, 0)  # what is drawn of each first
        return draws.reshape(sample_shape + self._batch + draws.shape[-1:])

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """Log-probability of sets [..., event], in nats; −inf outside the support."""
        sets = jnp.asarray(value)
        if not self._batch:
            return self._each(_log_prob, sets)
        # The batch first, flat; then what the value has beyond it.
        shape = jnp.broadcast_shapes(sets.shape[:-1], self._batch)
        beyond = len(shape) - len(self._batch)
        sets = jnp.broadcast_to(sets, (*shape, sets.shape[-1]))
        sets = sets.reshape(*shape[:beyond], -1, sets.shape[-1])
        found = self._each(_log_prob, jnp.moveaxis(sets, beyond, 0))
        return jnp.moveaxis(found.reshape(-1, *shape[:beyond]), 0, -1).reshape(shape)

    @constraints.dependent_property(is_discrete=True, event_dim=1)  # pyright: ignore[reportArgumentType]
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The sets that can be drawn where every tool is available."""
        return _Sets(self.z.shape[-1], self.budget, self.exactly, self.costs)

    @property
    def marginals(self) -> jax.Array:
        """P(tool j is in the set), [..., M]."""
        return self._each(gibbs.marginals)

    @property
    def mode(self) -> jax.Array:
        mode = lambda z, temperature, **options: gibbs.mode(z / temperature, **options)  # noqa: E731
        return self._each(mode)

    def entropy(self) -> jax.Array:
        """Entropy in nats, of the batch's shape."""
        return self._each(gibbs.entropy)


class _Sets(constraints.Constraint):
    """Sets of at most (exactly) `budget` of M tools, or within a cost."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_tools: int, budget: int, exactly: bool, costs: Any):
        self.num_tools, self.budget, self.exactly, self.costs = num_tools, budget, exactly, costs

    def __call__(self, x: Any) -> jax.Array:
        scores = jnp.zeros((self.num_tools,), jnp.float32)
        return _log_prob(jnp.asarray(x), scores, temperature=1.0, **_options(self)) > -jnp.inf

    def feasible_like(self, prototype: Any) -> jax.Array:
        """Events that are no draws: the set of no tools, or of the first ones."""
        event = gibbs.mode(jnp.zeros((self.num_tools,), jnp.float32), **_options(self))
        return jnp.broadcast_to(event, jnp.shape(prototype)).astype(jnp.asarray(prototype).dtype)

    def tree_flatten(self):
        names = ("num_tools", "budget", "exactly")
        return (self.costs,), (("costs",), {name: getattr(self, name) for name in names})

    def eq(self, other: object, static: bool = False) -> Any:
        if not isinstance(other, _Sets) or self.tree_flatten()[1] != other.tree_flatten()[1]:
            return False
        if self.costs is None or other.costs is None:
            return self.costs is other.costs
        return bool(jnp.all(self.costs == other.costs)) if static else self.costs == other.costs


def _options(of: Any) -> dict[str, Any]:
    return {"budget": of.budget, "exactly": of.exactly, "costs": of.costs}


@partial(jax.jit, static_argnames=("budget", "exactly"))
def _log_prob(sets, z, *, temperature, budget, exactly, costs):
    """Traced, so that sets out of the support are −inf and not refused."""
    return gibbs.log_prob(sets, z, budget, exactly=exactly, costs=costs, temperature=temperature)
