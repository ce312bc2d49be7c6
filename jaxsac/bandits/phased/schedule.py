"""The record of a phased algorithm, its schedule, its estimate, and its online form."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _loops
from jaxsac._arguments import (
    anything,
    arguments,
    choice,
    either,
    flag,
    integer,
    key,
    real,
    record,
    size,
)
from jaxsac.bandits.estimate.radii import (
    BELOW_ONE,
    KINDS,
    DesignNumbers,
    design_numbers,
    diagonal_design_numbers,
)
from jaxsac.bandits.sets.action_set import (
    ActionSet,
    a_set,
    check_dimension,
    known,
    no_choice,
    put,
    take,
)
from jaxsac.bandits.sets.supports import cast

FOREVER = 2**30  # longer than any horizon

Number = jax.Array | float


def scheduled(algorithm: "Phased", cycle: jax.Array) -> jax.Array:
    """⌈schedule_scale cycle^schedule_power⌉ steps, an int32; guarded against a power that rounding
    lifts above a whole number.
    """
    scale = jnp.asarray(algorithm.schedule_scale)
    length = scale * cycle.astype(scale.dtype) ** algorithm.schedule_power
    length = jnp.ceil(length * (1.0 - 4.0 * float(jnp.finfo(scale.dtype).eps)))
    return jnp.minimum(length, float(FOREVER)).astype(jnp.int32)


def forever(algorithm: "Phased", cycle: jax.Array) -> jax.Array:
    """All the steps that are left."""
    return jnp.int32(FOREVER)


def unscaled(algorithm: "Phased", dimension: int, dtype: Any) -> jax.Array:
    """Of what is not compared with a radius."""
    return jnp.ones((), dtype)


class Rule(NamedTuple):
    """When a phased algorithm locks its support, and how long it then exploits.

    * `verify(plan, estimate, cycle, within)`: whether the estimate [d] at the end of
      `cycle` (int32) may be locked, and its support [s] where finding that out has found it (else
      None). None: nothing is ever locked, and every cycle exploits.
    * `length(algorithm, cycle)`: steps of exploitation.
    * `sensitivity(algorithm, dimension, dtype)`: by how much a score or a value f(S)
      moves at most when the estimate moves by one unit of the radius.
    * `gap(action_set, theta, sparsity)`: the lead of the best support, and that support or None;
      None where nothing is proved.
    * `radii`: what `radius` may be.
    """

    verify: Any
    length: Callable[["Phased", jax.Array], jax.Array]
    sensitivity: Callable[..., jax.Array] = unscaled
    gap: Any = None
    radii: tuple[str, ...] = KINDS


_NOT_NEGATIVE = real(low=0, below=float("inf"))
ARGUMENTS = {  # of the algorithms here
    "action_set": a_set,
    "sparsity": size(1, "d"),
    "basis": either(choice("standard"), real("m", "d")),
    "sigma": either(_NOT_NEGATIVE, choice("auto")),
    "delta": BELOW_ONE,
    "radius": choice(*KINDS, "local"),
    "radius_scale": _NOT_NEGATIVE,
    "gap_factor": _NOT_NEGATIVE,
    "schedule_scale": _NOT_NEGATIVE,
    "schedule_power": real(low=0, below=float("inf")),
    "commit_at": integer(low=1),
    "num_cycles": integer(low=1),
    "lam": _NOT_NEGATIVE,
}


def phased(*names: str, **others: Any):
    """Declares the arguments of an algorithm by their names."""
    return arguments(**{name: ARGUMENTS[name] for name in names}, **others)


class Phased(eqx.Module):
    """A phased algorithm: every cycle c plays the basis once, estimates theta by least squares from
    all completed cycles, and then plays one action ⌈schedule_scale c^schedule_power⌉ times.

    Build it with `apsee`, `apsee_greedy`, `phased_greedy`, `explore_then_commit`, `e2tc` or `estc`;
    run it with `simulate`, or online with `init`, `act` and `update`.
    """

    action_set: ActionSet  # in R^d
    basis: jax.Array | None  # [m, d]; None: the unit vectors, each as long as the set allows
    sigma: Number  # [], the scale of the noise that it believes in
    delta: Number  # [], chance of a wrong lock
    radius_scale: Number  # [], multiplies the radius
    gap_factor: Number  # [], radii that a lead must exceed
    schedule_scale: Number  # []
    commit_at: jax.Array | int  # int32 [], the cycle or time of a lock without proof
    lam: Number  # [], of the Lasso
    enough: Number  # [], value of cycle · f(S) that ends the exploration
    sparsity: int = eqx.field(static=True)  # s
    rule: Rule = eqx.field(static=True)  # when it locks, and how long it exploits
    radius: str = eqx.field(static=True)  # of rule.radii
    schedule_power: float = eqx.field(static=True)  # of the cycle
    estimate_sigma: bool = eqx.field(static=True)  # from the data
    lasso: bool = eqx.field(static=True)  # exploits its estimate

    __hash__ = object.__hash__  # its bound methods go through `jax.jit`, which hashes them

    @phased(
        *(name for name in ARGUMENTS if name != "num_cycles"),
        rule=record(Rule),
        enough=_NOT_NEGATIVE,
        lasso=flag(),
    )
    def __init__(
        self,
        action_set: ActionSet,
        rule: Rule,
        *,
        sparsity: int,
        basis: Any = None,
        sigma: Any = 0.0,
        delta: Number = 0.5,
        radius: str = "l2",
        radius_scale: Number = 1.0,
        gap_factor: Number = 2.0,
        schedule_scale: Number = 1.0,
        schedule_power: float = 1.0,
        commit_at: Any = None,
        lam: Number = 0.0,
        enough: Number = 0.0,
        lasso: bool = False,
    ):
        self.action_set, self.rule = action_set, rule
        self.sparsity, self.radius = sparsity, radius
        choice(*rule.radii).take("radius", radius)
        _checks.require(
            radius != "local" or action_set.quadratic,
            "radius='local' needs a set whose f(S)^2 is quadratic (Ball, Ellipsoid): use 'hkz'.",
        )
        self.estimate_sigma = isinstance(sigma, str)
        self.sigma, self.delta = 0.0 if isinstance(sigma, str) else sigma, delta
        self.basis = None if basis is None or isinstance(basis, str) else basis
        _check_basis(self.basis, action_set)
        self.radius_scale, self.gap_factor, self.schedule_scale = (
            radius_scale,
            gap_factor,
            schedule_scale,
        )
        self.lam, self.enough = lam, enough
        self.commit_at = FOREVER if commit_at is None else commit_at
        self.schedule_power, self.lasso = float(schedule_power), lasso

    @arguments(key=key(), dimension=size(1), dtype=anything("a floating dtype, or None"))
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> "PhasedState":
        """The state before the first step, for theta in R^dimension; `key` is not needed and
        ignored.
        """
        plan = make_plan(self, dimension, jnp.result_type(float) if dtype is None else dtype)
        none, (support, _) = jnp.int32(0), no_choice(self.sparsity, dimension)
        zeros = jnp.zeros(plan.basis.shape[0], plan.basis.dtype)
        action, unlocked = jnp.zeros(dimension, plan.basis.dtype), jnp.asarray(False)
        return PhasedState(
            none + 1, none, none, zeros, zeros, unlocked, none - 1, support, action, plan
        )

    def act(self, state: "PhasedState", offer: None = None) -> jax.Array:
        """The action [d] to play now."""
        return jnp.where(state.left > 0, state.action, state.plan.basis[state.position])

    def update(
        self, state: "PhasedState", action: Any, reward: jax.Array, offer: None = None
    ) -> "PhasedState":
        """The state after `reward` for the `action` that `act` named (None: the same). Another one
        is refused; where it is traced it makes the state NaN.
        """
        number, dtype = state.plan.basis.shape[0], state.sums.dtype
        exploring = state.left == 0
        reward = jnp.where(exploring, real().take("reward", reward, dtype), 0.0)
        reward = reward * as_named(action, self.act(state))
        arm = jnp.where(exploring, state.position, 0)
        complete = exploring & (state.position == number - 1)
        # Of the deviations, by Welford: a sum of squares would cancel against the square of a sum.
        before = (state.cycle - 1).astype(dtype)
        away = reward - state.sums[arm] / jnp.maximum(before, 1.0)
        away = jnp.where(exploring, away**2 * before / (before + 1.0), 0.0)
        state = state._replace(
            sums=state.sums.at[arm].add(reward),
            squares=state.squares.at[arm].add(away),
            position=jnp.where(exploring, state.position + 1, 0),
            left=jnp.maximum(state.left - 1, 0),
        )
        state = _loops.cond(complete, lambda s: _decide(self, s), lambda s: s, state)
        over = (complete | ~exploring) & (state.left == 0)
        return state._replace(
            cycle=jnp.where(over, state.cycle + 1, state.cycle),
            position=jnp.where(complete | over, 0, state.position),
        )


def _check_basis(basis: jax.Array | None, action_set: ActionSet) -> None:
    if basis is None or not _checks.is_concrete(basis, action_set):
        return
    rows = np.asarray(basis, np.float64)
    _checks.require(bool(np.all(np.isfinite(rows))), "basis must be finite.")
    rank = np.linalg.matrix_rank(rows)
    _checks.require(
        rank == rows.shape[1],
        f"basis must span all {rows.shape[1]} coordinates, its rank is {rank}: add actions.",
    )
    try:
        longest = jax.vmap(cast(action_set, basis.dtype).gauge)(basis).max()
    except ValueError:  # a set without a gauge
        return
    if not _checks.is_concrete(longest):  # inside jax.jit
        return
    _checks.require(
        bool(longest <= 1.0 + 100.0 * float(jnp.finfo(basis.dtype).eps) ** 0.75),
        f"basis holds rows that are {float(longest):g} times too long for the action set: divide"
        " each by its gauge.",
    )


def as_named(action: Any, named: jax.Array) -> jax.Array:
    """1, or NaN where `action` is another one than `named`; a ValueError where both are known."""
    if action is None:
        return jnp.ones((), named.dtype)
    action = real("d").take("action", action, named.dtype, d=named.shape[0])
    slack = float(jnp.finfo(named.dtype).eps) ** 0.5 * jnp.max(jnp.abs(named))
    same = jnp.all(jnp.abs(action - named) <= slack)
    if _checks.is_concrete(same) and bool(jnp.all(jnp.isfinite(named))):
        _checks.require(
            bool(same),
            "action is not the one that act named for this state: rewards of other actions, as in a"
            " log, are for lin_ucb, lin_ts and optimistic_greedy.",
        )
    return jnp.where(same, 1.0, jnp.nan).astype(named.dtype)


class Plan(NamedTuple):
    """What an algorithm needs, made once for a dimension and a dtype."""

    algorithm: Phased  # its numbers as arrays of the dtype
    basis: jax.Array  # [m, d]
    solve: jax.Array  # [d, m], from mean rewards to the estimate; or its diagonal [d]
    numbers: DesignNumbers
    sensitivity: jax.Array  # []
    lead: jax.Array  # [], radius_scale · gap_factor · sensitivity

    @property
    def action_set(self) -> ActionSet:
        return self.algorithm.action_set


def make_plan(algorithm: Phased, dimension: int, dtype: Any) -> Plan:
    check_dimension(algorithm.action_set, dimension)
    _checks.require(
        algorithm.sparsity <= dimension,
        f"sparsity must be at most the dimension {dimension}, got {algorithm.sparsity}.",
    )
    algorithm = cast_algorithm(algorithm, dtype)
    if algorithm.basis is None:
        reach = algorithm.action_set.reach(dimension, dtype)
        solve = jnp.where(reach == 0, 0.0, 1.0 / jnp.where(reach == 0, 1.0, reach))
        basis, numbers = jnp.diag(reach), diagonal_design_numbers(reach)
    else:
        basis = algorithm.basis
        _checks.require(
            basis.shape[1] == dimension,
            f"basis must have {dimension} columns, one for each coordinate of theta, got"
            f" {basis.shape[1]}.",
        )
        solve, numbers = jnp.linalg.pinv(basis), design_numbers(basis)
    moves = algorithm.rule.sensitivity(algorithm, dimension, dtype)
    lead = algorithm.radius_scale * algorithm.gap_factor * moves
    return Plan(algorithm, basis, solve, numbers, moves, lead)


def cast_algorithm(algorithm: Any, dtype: Any) -> Any:
    """Numbers as arrays of `dtype`, so that Python, numpy and jax numbers share one trace; only
    `commit_at` counts.
    """
    changed = cast(algorithm, dtype)
    if isinstance(algorithm, Phased):
        times = jnp.asarray(algorithm.commit_at).astype(jnp.int32)
        changed = eqx.tree_at(lambda tree: tree.commit_at, changed, times)
    return changed


def apply_solve(solve: jax.Array, means: jax.Array) -> jax.Array:
    """The least squares estimate [d] from mean rewards [m] of the basis."""
    return solve * means if solve.ndim == 1 else jnp.matmul(solve, means, precision="highest")


def choose(plan: Plan, estimate: jax.Array) -> jax.Array:
    """The support [s] of the estimate."""
    return plan.action_set.greedy(shrink(plan, estimate), plan.algorithm.sparsity).indices


def exploit(plan: Plan, part: ActionSet, indices: jax.Array, estimate: jax.Array) -> jax.Array:
    """The best action on the support, in its own coordinates [s]."""
    return part.argmax(take(shrink(plan, estimate), indices))


def shrink(plan: Plan, estimate: jax.Array) -> jax.Array:
    """The estimate that is exploited: itself, or the Lasso's by coordinate descent, which is exact
    for orthogonal bases.
    """
    algorithm, number = plan.algorithm, plan.basis.shape[0]
    if not algorithm.lasso:
        return estimate
    if plan.solve.ndim == 1:
        return _soft(estimate, 0.5 * algorithm.lam * number * plan.solve**2)
    gram = jnp.matmul(plan.basis.T, plan.basis, precision="highest")
    target = jnp.matmul(gram, estimate, precision="highest")

    def coordinate(step, theta):
        i = step % theta.shape[0]
        rest = target[i] - jnp.sum(gram[i] * theta) + gram[i, i] * theta[i]
        return theta.at[i].set(_soft(rest, 0.5 * algorithm.lam * number) / gram[i, i])

    return _loops.fori_loop(0, 100 * estimate.shape[0], coordinate, estimate)


def _soft(value, threshold):
    return jnp.sign(value) * jnp.maximum(jnp.abs(value) - threshold, 0.0)


class PhasedState(NamedTuple):
    """Where an online run is."""

    cycle: jax.Array  # int32 [], from 1
    position: jax.Array  # int32 [], in the basis
    left: jax.Array  # int32 [], steps of the exploitation
    sums: jax.Array  # [m], of rewards by arm
    squares: jax.Array  # [m], of the deviations from each arm's mean
    locked: jax.Array  # bool []
    lock_cycle: jax.Array  # int32 [], −1: not yet
    indices: jax.Array  # int32 [s], the support; −1: none yet
    action: jax.Array  # [d], that is exploited
    plan: Plan


def _decide(algorithm: Phased, state: PhasedState) -> PhasedState:
    plan, rule = state.plan, algorithm.rule
    cycles, dimension = state.cycle.astype(state.sums.dtype), state.action.shape[0]
    estimate = apply_solve(plan.solve, state.sums / cycles)
    newly = exploiting = fresh = jnp.asarray(True)
    support = None
    if rule.verify is None:
        newly = ~newly
    else:
        proved, support = rule.verify(plan, estimate, state.cycle, jnp.sum(state.squares))
        newly = fresh = ~state.locked & proved
        exploiting = state.locked | newly
    support = choose(plan, estimate) if support is None else support
    indices = jnp.where(fresh, support, state.indices)
    action = exploit(plan, plan.action_set.restrict(indices, dimension), indices, estimate)
    action = known(action, estimate)
    length = rule.length(plan.algorithm, state.cycle)
    return state._replace(
        locked=state.locked | newly,
        lock_cycle=jnp.where(newly, state.cycle, state.lock_cycle),
        indices=indices,
        action=jnp.where(exploiting, put(action, indices, dimension), state.action),
        left=jnp.where(exploiting, length, 0),
    )
