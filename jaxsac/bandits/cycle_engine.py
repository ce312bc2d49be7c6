"""Simulation of phased algorithms a cycle at a time, many lanes at once.

Decisions depend on the exploration rewards alone, so one iteration stands for a whole cycle: T =
10^6 steps are about 1,400 iterations once the support is locked. Regret between recorded times is
linear within a phase and needs no storage.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac.bandits.sets.action_set import ActionSet
from jaxsac.bandits.phased import (
    Phased,
    Plan,
    apply_solve,
    choose,
    exploit,
    exploitation_length,
    verify,
)

BLOCK = 8  # cycles of noise that are drawn together
_SUPPORT_STREAM = (
    2**31 - 1
)  # folded into the key of the noise that is drawn for locked coordinates only


class Problem(NamedTuple):
    """What one lane simulates; `optimum` is the benchmark's reward of a step, `cost` [m] the regret
    of each arm of the basis, in order.
    """

    key: jax.Array
    theta: jax.Array
    sigma: jax.Array
    plan: Plan
    optimum: jax.Array
    cost: jax.Array
    horizon: jax.Array
    times: jax.Array


class Record(NamedTuple):
    """Regret at the recorded times, whether and at which cycle the support was locked, and that
    support.
    """

    regret: jax.Array
    locked: jax.Array
    lock_cycle: jax.Array
    indices: jax.Array


def draw_noise(noise: Any, key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Noise of scale 1: sub-Gaussian with constant 1 for the named ones."""
    if callable(noise):
        return jnp.asarray(noise(key, shape)).astype(dtype)
    if noise == "gaussian":
        return jax.random.normal(key, shape, dtype)
    if noise == "rademacher":
        return jax.random.rademacher(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -(3.0**0.5), 3.0**0.5)


def noise_block(noise, key: jax.Array, block: jax.Array, width: int, dtype) -> jax.Array:
    """Noise [BLOCK, width] of the cycles BLOCK block + 1, ..., the same however lanes are batched
    and whichever engine asks.
    """
    return draw_noise(noise, jax.random.fold_in(key, block), (BLOCK, width), dtype)


def regret_of(cost: jax.Array, optimum_gap: jax.Array, explored: jax.Array) -> jax.Array:
    """Total regret from that of the exploitation and the number of exploration steps, each
    repeating `cost` [m].
    """
    number = cost.shape[0]
    prefix = jnp.concatenate([jnp.zeros(1, cost.dtype), jnp.cumsum(cost)])
    whole = (explored // number).astype(cost.dtype) * prefix[-1]
    return optimum_gap + (whole + prefix[explored % number])


class _State(NamedTuple):
    """Arrays have the lanes last. `sums`: noise [m] by arm, or its image [s] on the locked
    coordinates; `total` and `lost`: the regret of all exploitation so far in two floats;
    `next_time`: the first time still to be recorded.
    """

    cycle: jax.Array
    time: jax.Array
    sums: jax.Array
    squares: jax.Array
    locked: jax.Array
    lock_cycle: jax.Array
    indices: jax.Array
    part: ActionSet
    total: jax.Array
    lost: jax.Array
    recorded: jax.Array
    explored: jax.Array
    next_time: jax.Array


_NEVER = jnp.iinfo(jnp.int32).max


def simulate_lanes(
    algorithm: Phased, noise, draws: str, problem: Problem, axes: Problem, num_lanes: int
) -> Record:
    """Simulate `num_lanes` lanes; `axes` says which leaves of `problem` have them as their last
    axis (-1) and which are shared (None).
    """
    sparsity, (number, dimension) = algorithm.sparsity, problem.plan.basis.shape[:2]
    dtype, num_times = problem.theta.dtype, problem.times.shape[0]

    def lanes(function, *state_axes, out=-1):
        return jax.vmap(function, in_axes=(axes, *state_axes), out_axes=out, axis_size=num_lanes)

    def restrict(problem: Problem, indices):
        return problem.plan.action_set.restrict(indices, dimension)

    def estimate_of(problem: Problem, sums, cycle):
        return problem.theta + apply_solve(
            problem.plan.solve, sums * (problem.sigma / cycle.astype(dtype))
        )

    def test(problem: Problem, sums, squares, cycle):
        within = (
            problem.sigma**2 * (squares - jnp.sum(sums**2) / cycle.astype(dtype))
            if algorithm.estimate_sigma
            else squares
        )
        return verify(algorithm, problem.plan, estimate_of(problem, sums, cycle), cycle, within)

    def select(problem: Problem, sums, cycle):
        return choose(algorithm, problem.plan, estimate_of(problem, sums, cycle))

    def shortfall(problem: Problem, part, indices, sums, cycle):
        """The regret of one step of exploitation."""
        action = exploit(algorithm, problem.plan, part, indices, estimate_of(problem, sums, cycle))
        theta = jnp.where(indices >= 0, problem.theta[indices], 0.0).astype(dtype)
        return problem.optimum - jnp.sum(theta * action)

    def length(problem: Problem, cycle):
        return exploitation_length(algorithm, problem.plan.schedule_scale, cycle)

    horizon = lanes(lambda problem: problem.horizon)(problem)
    times = lanes(lambda problem: problem.times)(problem)

    def play(state: _State, gaps, exploiting, lengths) -> _State:
        """Move the clock over one cycle, and record the times within it."""
        active = state.time < horizon
        explored_to = state.time + number
        steps = jnp.where(exploiting, jnp.clip(horizon - explored_to, 0, lengths), 0)
        end = jnp.where(active, explored_to + steps, state.time)

        def record(state: _State) -> _State:
            since, until = state.time[None], end[None]
            here = (times > since) & (times <= until)
            played = jnp.clip(times - explored_to[None], 0, steps[None]).astype(dtype)
            explored = (state.cycle - 1) * number + jnp.minimum(times - since, number)
            return state._replace(
                recorded=jnp.where(here, state.total[None] + gaps[None] * played, state.recorded),
                explored=jnp.where(here, explored, state.explored),
                next_time=jnp.min(jnp.where(times > until, times, _NEVER), axis=0, initial=_NEVER),
            )

        state = lax.cond(jnp.any(state.next_time <= end), record, lambda state: state, state)
        gain = jnp.where(steps > 0, gaps * steps.astype(dtype), 0.0) - state.lost
        total = state.total + gain
        return state._replace(
            cycle=state.cycle + 1, time=end, total=total, lost=(total - state.total) - gain
        )

    def first_cycle(block_noise):
        def cycle(j, state: _State) -> _State:
            fresh = block_noise[j]
            sums = state.sums + fresh
            squares = (
                state.squares + jnp.sum(fresh**2, axis=0)
                if algorithm.estimate_sigma
                else state.squares
            )
            state = state._replace(sums=sums, squares=squares)
            if algorithm.rule == "always":
                complete = state.time + number <= horizon
                indices = jnp.where(
                    complete[None],
                    lanes(select, -1, None)(problem, sums, state.cycle),
                    state.indices,
                )
                state = state._replace(indices=indices, part=lanes(restrict, -1)(problem, indices))
                exploiting = jnp.ones(num_lanes, bool)
            else:
                state = lax.cond(
                    jnp.any(~state.locked & (state.time < horizon)),
                    lock,
                    lambda state: state,
                    state,
                )
                exploiting = state.locked
            return exploit_and_play(state, exploiting)

        return cycle

    def lock(state: _State) -> _State:
        proved, support = lanes(test, -1, -1, None)(problem, state.sums, state.squares, state.cycle)
        newly = proved & ~state.locked & (state.time + number <= horizon)

        def fix(state: _State) -> _State:
            chosen = (
                lanes(select, -1, None)(problem, state.sums, state.cycle)
                if support is None
                else support
            )
            indices = jnp.where(newly[None], chosen, state.indices)
            return state._replace(
                locked=state.locked | newly,
                lock_cycle=jnp.where(newly, state.cycle, state.lock_cycle),
                indices=indices,
                part=lanes(restrict, -1)(problem, indices),
            )

        return lax.cond(jnp.any(newly), fix, lambda state: state, state)

    def exploit_and_play(state: _State, exploiting) -> _State:
        def gaps_of(state):
            return lanes(shortfall, -1, -1, -1, None)(
                problem, state.part, state.indices, state.sums, state.cycle
            )

        none = jnp.zeros(num_lanes, dtype)
        gaps = lax.cond(jnp.any(exploiting), gaps_of, lambda state: none, state)
        return play(state, gaps, exploiting, lanes(length, None)(problem, state.cycle))

    def block_of(stream, width):
        def draw(problem: Problem, block):
            key = problem.key if stream is None else jax.random.fold_in(problem.key, stream)
            return noise_block(noise, key, block, width, dtype)

        return lanes(draw, None)

    def run_block(state: _State, cycle_of, draw) -> _State:
        block_noise = draw(problem, (state.cycle - 1) // BLOCK)
        return lax.fori_loop(0, BLOCK, cycle_of(block_noise), state)

    floats, ints = jnp.zeros(num_lanes, dtype), jnp.zeros(num_lanes, jnp.int32)
    no_indices = jnp.full((sparsity, num_lanes), -1, jnp.int32)
    state = _State(
        cycle=jnp.int32(1),
        time=ints,
        sums=jnp.zeros((number, num_lanes), dtype),
        squares=floats,
        locked=jnp.zeros(num_lanes, bool),
        lock_cycle=ints - 1,
        indices=no_indices,
        part=lanes(restrict, -1)(problem, no_indices),
        total=floats,
        lost=floats,
        recorded=jnp.zeros((num_times, num_lanes), dtype),
        explored=jnp.zeros((num_times, num_lanes), jnp.int32),
        next_time=jnp.min(jnp.where(times > 0, times, _NEVER), axis=0, initial=_NEVER),
    )

    def unfinished(state: _State):
        going = state.time < horizon
        return jnp.any(going & ~state.locked) if draws == "support" else jnp.any(going)

    state = lax.while_loop(
        unfinished, lambda state: run_block(state, first_cycle, block_of(None, number)), state
    )
    if draws == "support":
        state = _locked_lanes(
            algorithm,
            problem,
            lanes,
            state,
            play,
            block_of(_SUPPORT_STREAM, sparsity),
            run_block,
            length,
            horizon,
        )
    regret = lanes(
        lambda problem, recorded, explored: regret_of(problem.cost, recorded, explored), -1, -1
    )(problem, state.recorded, state.explored)
    return Record(regret, state.locked, state.lock_cycle, state.indices)


def _locked_lanes(
    algorithm: Phased,
    problem: Problem,
    lanes,
    state: _State,
    play,
    draw,
    run_block,
    length,
    horizon,
) -> _State:
    """Finish lanes that are all locked: only the noise of their s coordinates is drawn, with its
    exact covariance sigma^2 (V^-1)_SS / c.
    """
    dtype = problem.theta.dtype

    def localise(problem: Problem, indices, sums):
        """theta and the accumulated error on the support, and a square root of (V^-1)_SS."""
        kept, solve = indices >= 0, problem.plan.solve
        image = jnp.where(kept, apply_solve(solve, sums)[indices], 0.0)
        if solve.ndim == 1:
            root = jnp.diag(jnp.where(kept, jnp.abs(solve[indices]), 0.0))
        else:
            rows = jnp.where(kept[:, None], solve[indices], 0.0)
            root = jnp.linalg.cholesky(
                jnp.matmul(rows, rows.T, precision="highest")
                + jnp.diag(jnp.where(kept, 0.0, 1.0).astype(dtype))
            )
            root = jnp.where(kept[:, None], root, 0.0)
        return (
            jnp.where(kept, problem.theta[indices], 0.0).astype(dtype),
            image.astype(dtype),
            root.astype(dtype),
        )

    theta, image, root = lanes(localise, -1, -1)(problem, state.indices, state.sums)
    diagonal = jnp.diagonal(root).T if problem.plan.solve.ndim == 1 else None

    def shortfall(problem: Problem, part, theta, image, cycle):
        action = part.argmax(theta + image * (problem.sigma / cycle.astype(dtype)))
        return problem.optimum - jnp.sum(theta * action)

    def cycle_of(block_noise):
        def cycle(j, state: _State) -> _State:
            fresh = block_noise[j]
            moved = (
                diagonal * fresh if diagonal is not None else jnp.sum(root * fresh[None], axis=1)
            )
            state = state._replace(sums=state.sums + moved)
            gaps = lanes(shortfall, -1, -1, -1, None)(
                problem, state.part, theta, state.sums, state.cycle
            )
            return play(state, gaps, state.locked, lanes(length, None)(problem, state.cycle))

        return cycle

    state = state._replace(sums=image)
    return lax.while_loop(
        lambda state: jnp.any(state.time < horizon),
        lambda state: run_block(state, cycle_of, draw),
        state,
    )


def simulate_batched(algorithm: Phased, noise, draws: str, problem: Problem) -> Record:
    """One lane, written so that `vmap`, also nested, runs all lanes in one loop with shared scalars
    instead of masking every array.
    """
    leaves, tree = jax.tree.flatten(problem)
    record = _with_lanes(algorithm, noise, draws, tree, tuple(leaves), (None,) * len(leaves), 1)
    return jax.tree.map(lambda leaf: leaf[..., 0], record)


def _with_lanes(algorithm, noise, draws, tree, leaves, axes, num_lanes):
    @jax.custom_batching.custom_vmap
    def call(*leaves):
        return simulate_lanes(
            algorithm,
            noise,
            draws,
            jax.tree.unflatten(tree, leaves),
            jax.tree.unflatten(tree, axes),
            num_lanes,
        )

    @call.def_vmap
    def batched(size, in_batched, *leaves):
        merged, merged_axes = [], []
        for leaf, axis, is_batched in zip(leaves, axes, in_batched, strict=True):
            if is_batched:
                leaf = jnp.moveaxis(
                    leaf, 0, -1
                )  # [..., lanes] if it had lanes, now [..., lanes, size]
                if axis is None:
                    leaf = jnp.broadcast_to(leaf[..., None, :], (*leaf.shape[:-1], num_lanes, size))
            elif axis is not None:
                leaf = jnp.broadcast_to(leaf[..., None], (*leaf.shape, size))
            has_lanes = is_batched or axis is not None
            merged.append(leaf.reshape(*leaf.shape[:-2], num_lanes * size) if has_lanes else leaf)
            merged_axes.append(-1 if has_lanes else None)
        record = _with_lanes(
            algorithm, noise, draws, tree, tuple(merged), tuple(merged_axes), num_lanes * size
        )
        split = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], num_lanes, size), -1, 0),
            record,
        )
        return split, jax.tree.map(lambda _: True, split)

    return call(*leaves)
