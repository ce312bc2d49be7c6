"""The question that a budgeted Gibbs policy is: scores, budget and options, checked once."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import integer, real, size
from jaxsac.solution import register

NO_ACTION = -1  # pads sets to a common width, and is ignored wherever it stands


class Groups(NamedTuple):
    """Groups of tools that share a score: counts[c] tools of score scores[c]."""

    scores: jax.Array  # [C]
    counts: jax.Array  # [C] int32


@register
class Problem(eqx.Module):
    """A budgeted Gibbs policy, as asked for."""

    z: jax.Array  # [M]; −inf for what cannot be chosen, and for what is held
    temperature: jax.Array  # []
    budget: jax.Array  # [] int32; NaN out where it is not within [0, degree]
    at_least: jax.Array  # [] int32
    costs: jax.Array | None  # [M] int32, at most degree + 1
    background: Groups | None
    given: jax.Array | None  # [G] int32, padded with −1
    scores: jax.Array  # [M]: z with the scores of what is held
    degree: int = eqx.field(static=True)  # D: the largest budget
    width: int = eqx.field(static=True)  # W: tools of the largest feasible set
    free: bool = eqx.field(static=True)  # the budget never binds: independent tools

    @property
    def held(self) -> jax.Array:
        """Which tools are given, bool [M]."""
        none = jnp.zeros(self.z.shape, bool)
        if self.given is None:
            return none
        return none.at[jnp.where(self.given < 0, self.z.shape[0], self.given)].set(
            True, mode="drop"
        )

    @property
    def spent(self) -> jax.Array:
        """What the given tools take of the budget, [] int32."""
        held = self.held.astype(jnp.int32)
        spent = held if self.costs is None else held * self.costs
        return jnp.sum(spent, dtype=jnp.int32)

    @property
    def limits(self) -> tuple[jax.Array, jax.Array]:
        """The least and the largest size (or cost) of what is added to the given tools."""
        return jnp.maximum(self.at_least - self.spent, 0), self.budget - self.spent

    @property
    def usable(self) -> jax.Array:
        """[] bool: whether all that is traced is in its range."""
        usable = jnp.all(self.scores < jnp.inf) & (self.temperature > 0)
        usable &= (self.budget >= 0) & (self.budget <= self.degree)
        if self.costs is not None:
            usable &= jnp.all(self.costs >= 0)
        if self.background is not None:
            usable &= jnp.all(self.background.scores < jnp.inf)
            usable &= jnp.all(self.background.counts >= 0)
        if self.given is not None:
            usable &= jnp.all(self.given < self.z.shape[0])
        return usable


def problem(
    z: Any,
    budget: Any,
    *,
    exactly: Any = False,
    max_budget: Any = None,
    costs: Any = None,
    background: Any = None,
    temperature: Any = 1.0,
    given: Any = None,
    at_least: Any = 0,
) -> Problem:
    """From arguments as `Policy` declares them."""
    budget, degree = _budget(budget, max_budget)
    at_least = budget if exactly else _concrete("at_least", at_least, ())
    _checks.require_known(
        lambda least, most: (least >= 0) & (least <= most),
        f"at_least must be in [0, budget], got {at_least} with budget={budget}.",
        at_least,
        budget,
    )
    _checks.require(
        costs is None or background is None,
        "costs and background cannot be combined: list the background's tools in z with their"
        " costs.",
    )
    width, free = degree, False
    if costs is not None:
        costs = _costs(costs, z.shape, degree)
        if _checks.is_concrete(costs):
            ordered = np.sort(np.asarray(costs, np.int64))
            width = int(np.sum(np.cumsum(ordered) <= degree))
        else:
            width = z.shape[0]
    elif background is not None:
        background = _background(background, z.dtype)
    else:
        static = _checks.is_concrete(at_least, budget)
        _checks.require(
            not static or int(at_least) <= z.shape[0],
            f"{'exactly=True' if exactly else 'at_least'} needs"
            f" {'budget' if exactly else 'at_least'} <= M, got {int(at_least) if static else 0}"
            f" and M={z.shape[0]}.",
        )
        free = static and int(at_least) == 0 and int(budget) >= z.shape[0]
    if given is not None:
        given = _given(given, z.shape[0], budget, costs)
    # Until here what is concrete stayed so, also under `jax.jit`.
    budget, at_least, costs, given = jax.tree.map(jnp.asarray, (budget, at_least, costs, given))
    made = Problem(
        z,
        jnp.asarray(temperature),
        budget,
        at_least,
        costs,
        background,
        given,
        z,
        degree,
        width,
        free,
    )
    if given is None:
        return made
    return eqx.tree_at(lambda p: p.z, made, jnp.where(made.held, -jnp.inf, z))


def _concrete(name: str, value: Any, shape: tuple[int | str, ...]) -> Any:
    """int32, and of NumPy where it is concrete."""
    kind = integer(*shape)
    if not _checks.is_concrete(value):
        return kind.take(name, value)
    with jax.ensure_compile_time_eval():
        return np.asarray(kind.take(name, value))


def _budget(budget: Any, max_budget: Any) -> tuple[Any, int]:
    if max_budget is None:
        degree = size().take("budget", budget)
        return np.asarray(degree, np.int32), degree
    degree = size().take("max_budget", max_budget)
    budget = _concrete("budget", budget, ())
    _checks.require_known(
        lambda budget: (budget >= 0) & (budget <= degree),
        f"budget must be in [0, max_budget], got {budget} with max_budget={degree}.",
        budget,
    )
    return budget, degree


def _costs(costs: Any, shape: tuple[int, ...], degree: int) -> Any:
    if _checks.is_concrete(costs):
        costs = np.asarray(costs)
        if np.issubdtype(costs.dtype, np.integer):  # what exceeds the budget may as well be 2^40
            costs = np.minimum(costs, min(degree + 1, np.iinfo(costs.dtype).max))
        _checks.require(
            bool(np.all(costs >= 0)),
            "costs must be >= 0: leave out tools of negative cost, or shift all costs.",
        )
        return _concrete("costs", costs, shape)
    return jnp.minimum(integer(*shape).take("costs", costs), degree + 1)


def _background(background: Any, dtype: Any) -> Groups:
    _checks.require(
        isinstance(background, tuple | list) and len(background) == 2,
        "background must be a pair (scores [C], counts [C]).",
    )
    scores = real("C").take("background scores", background[0], dtype)
    counts = integer(*scores.shape).take("background counts", background[1])
    _checks.require_known(lambda counts: counts >= 0, "background counts must be >= 0.", counts)
    return Groups(scores, counts)


def _given(given: Any, size: int, budget: Any, costs: Any) -> Any:
    given = _concrete("given", given, ("G",))
    if _checks.is_concrete(given, budget, costs):
        tools = np.asarray(given)[np.asarray(given) != NO_ACTION]
        _checks.require(
            bool(np.all((tools >= 0) & (tools < size))) and np.unique(tools).size == tools.size,
            f"given must name different tools of z, 0 to {size - 1} (and {NO_ACTION} pads), got"
            f" {tools.tolist()[:8]}.",
        )
        spent = tools.size if costs is None else int(np.asarray(costs, np.int64)[tools].sum())
        _checks.require(
            spent <= int(budget),
            f"given takes {spent} of a budget of {int(budget)}: raise the budget or hold less.",
        )
    return given
