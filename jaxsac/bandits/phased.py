"""Algorithms that alternate exploration of a basis with exploitation of one action: the record, its
decisions, its online form.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _checks
from jaxsac.bandits.sets.action_set import ActionSet
from jaxsac.bandits.local_proof import greedy_is_proved
from jaxsac.bandits.sets.supports import cast
from jaxsac.bandits.estimate.radii import DesignNumbers, design_numbers, diagonal_design_numbers, radius_at

FOREVER = 2**30  # longer than any horizon


class Phased(eqx.Module):
    """A phased algorithm: every cycle c plays the basis once, estimates theta by least squares from
    all completed cycles, and then plays one action ceil(schedule_scale c^schedule_power) times.
    Build it with `apsee`, `apsee_greedy`, `phased_greedy`, `explore_then_commit`, `e2tc` or `estc`;
    run it with `simulate`, or online with `init`, `act` and `update`.
    """

    action_set: ActionSet
    basis: jax.Array | None
    sigma: jax.Array | float
    delta: jax.Array | float
    radius_scale: jax.Array | float
    gap_factor: jax.Array | float
    schedule_scale: jax.Array | float
    commit_at: jax.Array | int
    lam: jax.Array | float
    enough: jax.Array | float
    sparsity: int = eqx.field(static=True)
    # : margin, greedy: verify, then lock the support; always: exploit at once; commit: lock at a
    # cycle; value: lock when the cycle times the : value of the estimate is `enough`
    rule: str = eqx.field(static=True)
    radius: str = eqx.field(static=True, default="l2")
    schedule_power: float = eqx.field(static=True, default=1.0)
    estimate_sigma: bool = eqx.field(static=True, default=False)
    lasso: bool = eqx.field(static=True, default=False)

    def init(self, key: jax.Array | None = None, *, dimension: int, dtype=None) -> "PhasedState":
        """The state before the first step, for theta in R^dimension; `key` is not needed and
        ignored.
        """
        return start(
            plan(self, dimension, jnp.result_type(float) if dtype is None else dtype), self
        )

    def act(self, state: "PhasedState", offer: None = None) -> jax.Array:
        """The action [d] to play now."""
        return jnp.where(state.left > 0, state.action, state.plan.basis[state.position])

    def update(
        self, state: "PhasedState", action: jax.Array, reward: jax.Array, offer: None = None
    ) -> "PhasedState":
        """The state after `reward` for the action that `act` named; `action` is not used."""
        return observe(self, state, reward)


class Plan(NamedTuple):
    """What an algorithm needs, made once for a dimension and a dtype: the basis [m, d], the map [d,
    m] (or its diagonal [d]) from mean rewards to the estimate, and numbers.
    """

    action_set: ActionSet
    basis: jax.Array
    solve: jax.Array
    numbers: DesignNumbers
    sensitivity: jax.Array
    lead: jax.Array
    sigma: jax.Array
    delta: jax.Array
    schedule_scale: jax.Array
    commit_at: jax.Array
    lam: jax.Array
    enough: jax.Array


def plan(algorithm: Phased, dimension: int, dtype) -> Plan:
    _checks.require(
        algorithm.sparsity <= dimension,
        f"sparsity must be at most the dimension {dimension}, got {algorithm.sparsity}.",
    )
    action_set = cast(algorithm.action_set, dtype)
    if algorithm.basis is None:
        reach = action_set.reach(dimension, dtype)
        solve = jnp.where(reach == 0, 0.0, 1.0 / jnp.where(reach == 0, 1.0, reach))
        basis, numbers = jnp.diag(reach), diagonal_design_numbers(reach)
    else:
        basis = jnp.asarray(algorithm.basis).astype(dtype)
        _checks.require(
            basis.shape[1] == dimension,
            f"basis must have {dimension} columns, one for each coordinate of theta, got {basis.shape[1]}.",
        )
        solve, numbers = jnp.linalg.pinv(basis), design_numbers(basis)
    moves = sensitivity(algorithm, action_set, dimension, dtype)
    scale, factor = (
        _checks.real_scalar("radius_scale", algorithm.radius_scale, dtype),
        _checks.real_scalar("gap_factor", algorithm.gap_factor, dtype),
    )
    return Plan(
        action_set,
        basis,
        solve,
        numbers,
        moves,
        scale * factor * moves,
        _checks.real_scalar("sigma", algorithm.sigma, dtype),
        _checks.real_scalar("delta", algorithm.delta, dtype),
        _checks.real_scalar("schedule_scale", algorithm.schedule_scale, dtype),
        jnp.asarray(algorithm.commit_at).astype(jnp.int32),
        _checks.real_scalar("lam", algorithm.lam, dtype),
        _checks.real_scalar("enough", algorithm.enough, dtype),
    )


def sensitivity(algorithm: Phased, action_set: ActionSet, dimension: int, dtype) -> jax.Array:
    """By how much a score or a value f(S) moves at most when the estimate moves by one unit of the
    radius.
    """
    if algorithm.rule == "margin":
        return action_set.score_slope(jnp.zeros(dimension, dtype))  # pyright: ignore[reportAttributeAccessIssue]
    if algorithm.rule != "greedy":
        return jnp.ones((), dtype)
    widen = algorithm.sparsity**0.5 if algorithm.radius == "coord" else 1.0
    return jnp.asarray(action_set.norm_bound(algorithm.sparsity, dimension)).astype(dtype) * widen


def exploitation_length(algorithm: Phased, scale: jax.Array, cycle: jax.Array) -> jax.Array:
    """ceil(scale cycle^power), an int32; guarded against a power that rounding lifts above a whole
    number.
    """
    if algorithm.rule in ("commit", "value"):
        return jnp.int32(FOREVER)
    length = scale * cycle.astype(scale.dtype) ** algorithm.schedule_power
    length = jnp.ceil(length * (1.0 - 4.0 * float(jnp.finfo(scale.dtype).eps)))
    return jnp.minimum(length, float(FOREVER)).astype(jnp.int32)


def apply_solve(solve: jax.Array, means: jax.Array) -> jax.Array:
    """The least squares estimate [d] from mean rewards [m] of the basis."""
    return solve * means if solve.ndim == 1 else jnp.matmul(solve, means, precision="highest")


def noise_level(
    algorithm: Phased, plan: Plan, cycle: jax.Array, within: jax.Array, num_arms: int
) -> tuple[jax.Array, jax.Array]:
    """The bound on sigma and the delta that is left for the estimate. `within`: the sum of squared
    deviations within arms.

    From the tail of chi^2 with nu = m (c - 1) degrees of freedom (Laurent and Massart, 2000):
    sigma^2 <= within / (nu - 2 sqrt(nu x)) for all cycles with probability 1 - delta/2, where x =
    log(pi^2 c^2 / (3 delta)); infinite while the bound says nothing.
    """
    if not algorithm.estimate_sigma:
        return plan.sigma, plan.delta
    freedom = num_arms * (cycle - 1.0)
    least = freedom - 2.0 * jnp.sqrt(freedom * jnp.log(jnp.pi**2 * cycle**2 / (3.0 * plan.delta)))
    bound = jnp.sqrt(within / jnp.where(least > 0, least, 1.0))
    return jnp.where(least > 0, bound, jnp.inf), plan.delta / 2.0


def verify(
    algorithm: Phased, plan: Plan, estimate: jax.Array, cycle: jax.Array, within: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Whether the estimate [d] at the end of `cycle` (int32) may be locked, and its support [s]
    where finding that out has found it.
    """
    floating = cycle.astype(estimate.dtype)
    if algorithm.rule == "always":
        return jnp.asarray(False), None
    if algorithm.rule == "commit":
        return cycle == plan.commit_at, None
    if algorithm.rule == "value":
        selection = plan.action_set.greedy(estimate, algorithm.sparsity)
        return floating * selection.value >= plan.enough, selection.indices
    if algorithm.sparsity == estimate.shape[0]:  # nothing is left to choose
        return ~jnp.any(jnp.isnan(estimate)), None
    commit = cycle * plan.basis.shape[0] >= plan.commit_at
    sigma, delta = noise_level(algorithm, plan, floating, within, plan.basis.shape[0])
    threshold = plan.lead * radius_at(
        algorithm.radius, plan.numbers, estimate.shape[0], floating, sigma, delta
    )
    if algorithm.radius == "local":
        # The threshold is gap_factor L eps: half of it is L eps for the gap_factor 2 of the proof.
        error = threshold / (2.0 * plan.sensitivity)
        return greedy_is_proved(
            plan.action_set, estimate, algorithm.sparsity, error, plan.sensitivity
        ) | commit, None
    if algorithm.rule == "margin":
        gap = ranked_gap(plan.action_set.scores(estimate), algorithm.sparsity)  # pyright: ignore[reportAttributeAccessIssue]
        return (gap > threshold) | commit, None
    selection = plan.action_set.greedy(estimate, algorithm.sparsity)
    return (selection.gap > threshold) | commit, selection.indices


def choose(algorithm: Phased, plan: Plan, estimate: jax.Array) -> jax.Array:
    """The support [s] of the estimate."""
    return plan.action_set.greedy(shrink(algorithm, plan, estimate), algorithm.sparsity).indices


def shrink(algorithm: Phased, plan: Plan, estimate: jax.Array) -> jax.Array:
    """The estimate that is exploited: itself, or the Lasso's by coordinate descent, which is exact
    for orthogonal bases.
    """
    if not algorithm.lasso:
        return estimate
    number = plan.basis.shape[0]
    if plan.solve.ndim == 1:
        return _soft(estimate, 0.5 * plan.lam * number * plan.solve**2)
    gram = jnp.matmul(plan.basis.T, plan.basis, precision="highest")
    target = jnp.matmul(gram, estimate, precision="highest")

    def coordinate(step, theta):
        i = step % theta.shape[0]
        rest = target[i] - jnp.sum(gram[i] * theta) + gram[i, i] * theta[i]
        return theta.at[i].set(_soft(rest, 0.5 * plan.lam * number) / gram[i, i])

    return lax.fori_loop(0, 100 * estimate.shape[0], coordinate, estimate)


def _soft(value, threshold):
    return jnp.sign(value) * jnp.maximum(jnp.abs(value) - threshold, 0.0)


def ranked_gap(scores: jax.Array, sparsity: int) -> jax.Array:
    """The s-th largest score minus the next one, s < d, by insertion: comparisons only, no sort,
    fast over many lanes.
    """
    dimension = scores.shape[0]

    def insert(value, top):
        out = []
        for held in top:
            out.append(jnp.maximum(held, value))
            value = jnp.minimum(held, value)
        return tuple(out)

    top = (jnp.asarray(-jnp.inf, scores.dtype),) * (sparsity + 1)
    if dimension * (sparsity + 1) <= 256:
        for i in range(dimension):
            top = insert(scores[i], top)
    else:
        top = lax.fori_loop(0, dimension, lambda i, top: insert(scores[i], top), top)
    return top[sparsity - 1] - top[sparsity]


class PhasedState(NamedTuple):
    """Where an online run is: cycle (from 1), position in the basis, steps left of the
    exploitation, sums [m] and squares of rewards by arm, whether and at which cycle the support was
    locked, the support [s] (-1: none yet), the action [d] that is exploited, and the plan.
    """

    cycle: jax.Array
    position: jax.Array
    left: jax.Array
    sums: jax.Array
    squares: jax.Array
    locked: jax.Array
    lock_cycle: jax.Array
    indices: jax.Array
    action: jax.Array
    plan: Plan


def start(plan: Plan, algorithm: Phased) -> PhasedState:
    number, dimension = plan.basis.shape
    zeros = jnp.zeros(number, plan.basis.dtype)
    none, action = jnp.int32(0), jnp.zeros(dimension, plan.basis.dtype)
    support = jnp.full(algorithm.sparsity, -1, jnp.int32)
    return PhasedState(
        jnp.int32(1),
        none,
        none,
        zeros,
        zeros,
        jnp.asarray(False),
        jnp.int32(-1),
        support,
        action,
        plan,
    )


def observe(algorithm: Phased, state: PhasedState, reward: jax.Array) -> PhasedState:
    number = state.plan.basis.shape[0]
    exploring = state.left == 0
    reward = jnp.where(exploring, jnp.asarray(reward).astype(state.sums.dtype), 0.0)
    arm = jnp.where(exploring, state.position, 0)
    sums, squares = state.sums.at[arm].add(reward), state.squares.at[arm].add(reward**2)
    complete = exploring & (state.position == number - 1)
    state = state._replace(
        sums=sums,
        squares=squares,
        position=jnp.where(exploring, state.position + 1, 0),
        left=jnp.maximum(state.left - 1, 0),
    )
    state = lax.cond(complete, lambda s: _decide(algorithm, s), lambda s: s, state)
    over = (complete & (state.left == 0)) | (~exploring & (state.left == 0))
    return state._replace(
        cycle=jnp.where(over, state.cycle + 1, state.cycle),
        position=jnp.where(complete | over, 0, state.position),
    )


def _decide(algorithm: Phased, state: PhasedState) -> PhasedState:
    plan = state.plan
    cycles = state.cycle.astype(state.sums.dtype)
    estimate = apply_solve(plan.solve, state.sums / cycles)
    within = jnp.sum(state.squares - state.sums**2 / cycles)
    proved, support = verify(algorithm, plan, estimate, state.cycle, within)
    newly = ~state.locked & proved
    fresh = newly | (algorithm.rule == "always")
    indices = jnp.where(
        fresh, choose(algorithm, plan, estimate) if support is None else support, state.indices
    )
    locked = state.locked | newly
    exploiting = locked | (algorithm.rule == "always")
    action = exploit(
        algorithm, plan, plan.action_set.restrict(indices, estimate.shape[0]), indices, estimate
    )
    place = jnp.where(indices >= 0, indices, estimate.shape[0])
    full = jnp.zeros_like(state.action).at[place].set(action, mode="drop")
    return state._replace(
        locked=locked,
        lock_cycle=jnp.where(newly, state.cycle, state.lock_cycle),
        indices=indices,
        action=jnp.where(exploiting, full, state.action),
        left=jnp.where(
            exploiting, exploitation_length(algorithm, plan.schedule_scale, state.cycle), 0
        ),
    )


def exploit(
    algorithm: Phased, plan: Plan, part: ActionSet, indices: jax.Array, estimate: jax.Array
) -> jax.Array:
    """The best action on the support, in its own coordinates [s]."""
    estimate = shrink(algorithm, plan, estimate)
    return part.argmax(jnp.where(indices >= 0, estimate[indices], 0.0).astype(estimate.dtype))
