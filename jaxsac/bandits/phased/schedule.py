"""The record of a phased algorithm, its schedule, its estimate, and its online form."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _loops
from jaxsac._arguments import arguments, choice, either, flag, integer, real, record, size
from jaxsac.bandits.estimate.radii import (
    BELOW_ONE,
    KINDS,
    DesignNumbers,
    coordinate_radius,
    design_numbers,
    diagonal_design_numbers,
)
from jaxsac.bandits.phased.rule import FOREVER, Number, Rule
from jaxsac.bandits.protocol import INIT, Policy, Total
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


class Phased(Policy):
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

    @arguments(**INIT)
    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> "PhasedState":
        """The state before the first step, for theta in R^dimension; `key` is not needed and
        ignored.
        """
        plan = make_plan(self, dimension, jnp.result_type(float) if dtype is None else dtype)
        none, (support, _) = jnp.int32(0), no_choice(self.sparsity, dimension)
        zeros = jnp.zeros(plan.basis.shape[0], plan.basis.dtype)
        sums, counts = Total(zeros, zeros), jnp.zeros(zeros.shape, jnp.int32)
        action, unlocked = jnp.zeros(dimension, plan.basis.dtype), jnp.asarray(False)
        return PhasedState(
            none + 1, none, sums, sums, counts, none, unlocked, none - 1, support, action, plan
        )

    def act(self, state: "PhasedState", offer: None = None) -> jax.Array:
        """The action [d] to play now."""
        return jnp.where(state.left > 0, state.action, state.plan.basis[_due(state)])

    def update(
        self, state: "PhasedState", action: Any, reward: jax.Array, offer: None = None
    ) -> "PhasedState":
        """The state after `reward` for `action` [d], None for the one that `act` named.

        Only the exploration teaches: a reward of another action counts where that is a row of the
        basis, as of a log or one that is late, and is dropped otherwise.
        """
        basis, dtype = state.plan.basis, state.plan.basis.dtype
        exploring, named = state.left == 0, _due(state)
        reward = real().take("reward", reward, dtype)
        own, arm, known = jnp.asarray(True), named, jnp.isfinite(reward)
        if action is not None:
            action = real("d").take("action", action, dtype, d=basis.shape[1])
            own, arm = (
                same(action, self.act(state)),
                jnp.argmin(jnp.sum(jnp.abs(basis - action[None]), 1)),
            )
            known &= own | same(action, basis[arm])
            arm = jnp.where(own, named, arm)
        used = known & (exploring | ~own)
        reward, weight = jnp.where(used, reward, 0.0), jnp.where(used, 1, 0).astype(jnp.int32)
        # Of the deviations, by Welford: a sum of squares would cancel against the square of a sum.
        before = state.counts[arm].astype(dtype)
        away = reward - state.sums.value[arm] / jnp.maximum(before, 1.0)
        away = jnp.where(used, away**2 * before / (before + 1.0), 0.0)
        counts, none = state.counts.at[arm].add(weight), jnp.zeros(basis.shape[0], dtype)
        least, left = jnp.min(counts), state.left - jnp.where(own & ~exploring, 1, 0)
        complete = exploring & (least >= state.cycle)
        state = state._replace(
            sums=state.sums.plus(none.at[arm].set(reward)),
            squares=state.squares.plus(none.at[arm].set(away)),
            counts=counts,
            cycle=jnp.where(complete, least, state.cycle),
            left=left.astype(jnp.int32),
            dropped=state.dropped + jnp.where(known, 0, 1).astype(jnp.int32),
        )
        state = _loops.cond(complete, lambda s: _decide(self, s), lambda s: s, state)
        over = (complete | ~exploring) & (state.left == 0)
        return state._replace(cycle=jnp.where(over, state.cycle + 1, state.cycle))

    def estimate(self, state: "PhasedState") -> tuple[jax.Array, jax.Array]:
        """The least squares estimate [d] from the exploration, and the radius of each coordinate
        that holds at all cycles with probability 1 − delta; infinite for algorithms that verify
        nothing, and before the first cycle.
        """
        solve, number = state.plan.solve, state.plan.basis.shape[0]
        spread = solve**2 if solve.ndim == 1 else jnp.sum(solve**2, axis=1)
        count = jnp.min(state.counts).astype(spread.dtype)
        algorithm, cycle = state.plan.algorithm, jnp.maximum(count, 1.0)
        sigma, delta = noise_level(algorithm, cycle, jnp.sum(state.squares.value), number)
        width = coordinate_radius(spread, spread.shape[0], cycle, sigma, delta)
        known = (count > 0) & (self.rule.gap is not None)
        return least_squares(state), jnp.where(known, width, jnp.inf)


def _due(state: "PhasedState") -> jax.Array:
    """The first arm that this cycle has not seen yet."""
    return jnp.argmax(state.counts < state.cycle)


def same(action: jax.Array, other: jax.Array) -> jax.Array:
    """Whether two actions are equal up to rounding."""
    slack = float(jnp.finfo(other.dtype).eps) ** 0.5 * jnp.max(jnp.abs(other))
    return jnp.all(jnp.abs(action - other) <= slack)


def noise_level(
    algorithm: Phased, cycle: jax.Array, within: jax.Array, num_arms: int
) -> tuple[jax.Array, jax.Array]:
    """The bound on sigma and the delta that is left for the estimate.

    From the tail of χ² with ν = m (c − 1) degrees of freedom: σ² ≤ within / (ν − 2 √(ν x)) for all
    cycles with probability 1 − delta/2, where x = log(π² c² / (3 delta)); infinite while the bound
    says nothing.

    Source: Laurent and Massart, 2000.
    """
    sigma, delta = jnp.asarray(algorithm.sigma), jnp.asarray(algorithm.delta)
    if not algorithm.estimate_sigma:
        return sigma, delta
    freedom = num_arms * (cycle - 1.0)
    least = freedom - 2.0 * jnp.sqrt(freedom * jnp.log(jnp.pi**2 * cycle**2 / (3.0 * delta)))
    bound = jnp.sqrt(within / jnp.where(least > 0, least, 1.0))
    return jnp.where(least > 0, bound, jnp.inf), delta / 2.0


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
    check_dimension(algorithm.action_set, dimension, algorithm.sparsity)
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
    left: jax.Array  # int32 [], steps of the exploitation
    sums: Total  # [m], of rewards by arm
    squares: Total  # [m], of the deviations from each arm's mean
    counts: jax.Array  # int32 [m], of rewards by arm
    dropped: jax.Array  # int32 [], rewards that were no numbers, or of no row of the basis
    locked: jax.Array  # bool []
    lock_cycle: jax.Array  # int32 [], −1: not yet
    indices: jax.Array  # int32 [s], the support, locked or of the last cycle; −1: none yet
    action: jax.Array  # [d], that is exploited
    plan: Plan


def least_squares(state: PhasedState) -> jax.Array:
    """The estimate [d] from the mean reward of each arm."""
    sums = state.sums.value
    return apply_solve(state.plan.solve, sums / jnp.maximum(state.counts, 1).astype(sums.dtype))


def _decide(algorithm: Phased, state: PhasedState) -> PhasedState:
    plan, rule = state.plan, algorithm.rule
    dimension, estimate = state.action.shape[0], least_squares(state)
    newly = exploiting = jnp.asarray(True)
    support = None
    if rule.verify is None:
        newly = ~newly
    else:
        proved, support = rule.verify(plan, estimate, state.cycle, jnp.sum(state.squares.value))
        newly = ~state.locked & proved
        exploiting = state.locked | newly
    support = choose(plan, estimate) if support is None else support
    indices = jnp.where(state.locked, state.indices, support)
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
