"""Simulation of phased algorithms a cycle at a time, many lanes at once.

Decisions depend on the exploration rewards alone, so one iteration stands for a whole cycle: T =
10^6 steps are about 1,400 iterations once the support is locked. Regret between recorded times is
linear within a phase and needs no storage.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac import _loops
from jaxsac.bandits.engine.steps import BLOCK, Run, Trial, noise_block, recovery, status_of
from jaxsac.bandits.phased.schedule import apply_solve, choose, exploit
from jaxsac.bandits.protocol import Total
from jaxsac.bandits.sets.action_set import ActionSet, no_choice, take

_SUPPORT_STREAM = 2**31 - 1  # folded into the key of the noise of locked coordinates alone
_NEVER = jnp.iinfo(jnp.int32).max


class _State(NamedTuple):
    """Arrays have the lanes last; n of them."""

    cycle: jax.Array  # int32 [], from 1
    time: jax.Array  # int32 [n], steps taken
    sums: jax.Array  # [m, n], noise by arm; or its image [s, n] on the locked coordinates
    squares: jax.Array  # [n], of noise
    locked: jax.Array  # bool [n]
    lock_cycle: jax.Array  # int32 [n], −1: not yet
    indices: jax.Array  # int32 [s, n], the support
    part: ActionSet  # the actions on it
    total: Total  # [n], the regret of all exploitation so far
    recorded: jax.Array  # [K, n], the regret of exploitation at the recorded times,
    explored: jax.Array  # int32 [K, n], the steps of exploration,
    chosen: jax.Array  # int32 [s, K, n], and the support of the last complete cycle
    next_time: jax.Array  # int32 [n], the first time still to be recorded


class Lanes(NamedTuple):
    """Trials that are simulated together, in step."""

    noise: Any  # its name, or a function
    trial: Trial  # arrays have the lanes last, or are shared by all
    axes: Trial  # −1, or None where shared
    size: int
    horizon: Any = None  # int32 [n]
    times: Any = None  # int32 [K, n]

    @property
    def algorithm(self):
        return self.trial.plan.algorithm

    def each(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(trial, *arguments) of every lane; scalars among the arguments are shared."""
        shared = [None if isinstance(x, jax.Array) and x.ndim == 0 else -1 for x in arguments]
        mapped = jax.vmap(function, (self.axes, *shared), out_axes=-1, axis_size=self.size)
        return mapped(self.trial, *arguments)


def _estimate(trial: Trial, sums: jax.Array, cycle: jax.Array) -> jax.Array:
    scale = trial.sigma / cycle.astype(sums.dtype)
    return trial.theta + apply_solve(trial.plan.solve, sums * scale)


def _restrict(trial: Trial, indices: jax.Array) -> ActionSet:
    return trial.plan.action_set.restrict(indices, trial.theta.shape[0])


def _select(trial: Trial, sums: jax.Array, cycle: jax.Array) -> jax.Array:
    return choose(trial.plan, _estimate(trial, sums, cycle))


def _test(trial: Trial, sums: jax.Array, squares: jax.Array, cycle: jax.Array):
    algorithm, within = trial.plan.algorithm, squares
    if algorithm.estimate_sigma:
        spread = squares - jnp.sum(sums**2) / cycle.astype(sums.dtype)
        within = trial.sigma**2 * spread
    estimate = _estimate(trial, sums, cycle)
    return algorithm.rule.verify(trial.plan, estimate, cycle, within)


def _length(trial: Trial, cycle: jax.Array) -> jax.Array:
    return trial.plan.algorithm.rule.length(trial.plan.algorithm, cycle)


def _shortfall(trial: Trial, part, indices, sums, cycle) -> jax.Array:
    """The regret of one step of exploitation."""
    action = exploit(trial.plan, part, indices, _estimate(trial, sums, cycle))
    return trial.best.value - jnp.sum(take(trial.theta, indices) * action)


def _outcome(trial: Trial, exploited: jax.Array, explored: jax.Array, chosen: jax.Array):
    """Total regret [K] from that of the exploitation and the steps of exploration, which repeat
    the basis; the rewards [K], and the shares [K] of the support that is known.
    """
    basis = trial.plan.basis
    cost = trial.best.value - jnp.matmul(basis, trial.theta, precision="highest")
    prefix = jnp.concatenate([jnp.zeros(1, cost.dtype), jnp.cumsum(cost)])
    whole = (explored // basis.shape[0]).astype(cost.dtype) * prefix[-1]
    regret = exploited + (whole + prefix[explored % basis.shape[0]])
    rewards = trial.best.value * trial.times.astype(regret.dtype) - regret
    return regret, rewards, recovery(chosen.T, trial.best, regret)


def _lock(lanes: Lanes, state: _State) -> _State:
    """Lock the lanes whose support is proved."""
    sums, cycle = state.sums, state.cycle
    proved, support = lanes.each(_test, sums, state.squares, cycle)
    complete = state.time + sums.shape[0] <= lanes.horizon
    newly = proved & ~state.locked & complete

    def fix(state: _State) -> _State:
        chosen = lanes.each(_select, sums, cycle) if support is None else support
        indices = jnp.where(newly[None], chosen, state.indices)
        return state._replace(
            locked=state.locked | newly,
            lock_cycle=jnp.where(newly, cycle, state.lock_cycle),
            indices=indices,
            part=lanes.each(_restrict, indices),
        )

    return _loops.cond(jnp.any(newly), fix, lambda state: state, state)


def _choose_anew(lanes: Lanes, state: _State) -> _State:
    """The support of this cycle, where none is ever locked."""
    complete = state.time + state.sums.shape[0] <= lanes.horizon
    chosen = lanes.each(_select, state.sums, state.cycle)
    indices = jnp.where(complete[None], chosen, state.indices)
    return state._replace(indices=indices, part=lanes.each(_restrict, indices))


def _cycle(lanes: Lanes, fresh: jax.Array, state: _State) -> _State:
    """Explore once, with the noise `fresh` [m, n], decide, and exploit."""
    state = state._replace(sums=state.sums + fresh)
    if lanes.algorithm.estimate_sigma:
        state = state._replace(squares=state.squares + jnp.sum(fresh**2, axis=0))
    if lanes.algorithm.rule.verify is None:
        state = _choose_anew(lanes, state)
        exploiting = jnp.ones(lanes.size, bool)
    else:
        open_ones = ~state.locked & (state.time < lanes.horizon)
        state = _loops.cond(
            jnp.any(open_ones), functools.partial(_lock, lanes), lambda state: state, state
        )
        exploiting = state.locked

    def gaps_of(state):
        return lanes.each(_shortfall, state.part, state.indices, state.sums, state.cycle)

    none = jnp.zeros(lanes.size, state.sums.dtype)
    gaps = _loops.cond(jnp.any(exploiting), gaps_of, lambda state: none, state)
    return _play(lanes, state, gaps, exploiting, _support)


def _support(lanes: Lanes, state: _State) -> jax.Array:
    """The support [s, n] of this cycle's estimate, unless one is locked."""
    if lanes.algorithm.rule.verify is None:
        return state.indices
    chosen = lanes.each(_select, state.sums, state.cycle)
    return jnp.where(state.locked[None], state.indices, chosen)


def _play(
    lanes: Lanes, state: _State, gaps: jax.Array, exploiting: jax.Array, support: Callable
) -> _State:
    """Move the clock over one cycle, and record the times within it."""
    number, dtype = lanes.trial.plan.basis.shape[0], state.sums.dtype
    explored_to = state.time + number
    lengths = lanes.each(_length, state.cycle)
    steps = jnp.where(exploiting, jnp.clip(lanes.horizon - explored_to, 0, lengths), 0)
    end = jnp.where(state.time < lanes.horizon, explored_to + steps, state.time)

    def record(state: _State) -> _State:
        times, since, until = lanes.times, state.time[None], end[None]
        here = (times > since) & (times <= until)
        played = jnp.clip(times - explored_to[None], 0, steps[None]).astype(dtype)
        explored = (state.cycle - 1) * number + jnp.minimum(times - since, number)
        known = (times >= explored_to[None]) & (times < until + number) & (since < until)
        return state._replace(
            chosen=jnp.where(known[None], support(lanes, state)[:, None], state.chosen),
            recorded=jnp.where(here, state.total.value[None] + gaps[None] * played, state.recorded),
            explored=jnp.where(here, explored, state.explored),
            next_time=_first_after(times, until),
        )

    due = jnp.any(state.next_time < end + number)  # also those before the next estimate
    state = _loops.cond(due, record, lambda state: state, state)
    total = state.total.plus(jnp.where(steps > 0, gaps * steps.astype(dtype), 0.0))
    return state._replace(cycle=state.cycle + 1, time=end, total=total)


def _first_after(times: jax.Array, until: Any) -> jax.Array:
    return jnp.min(jnp.where(times > until, times, _NEVER), axis=0, initial=_NEVER)


def _block(lanes: Lanes, cycle: Callable, stream: int | None, state: _State) -> _State:
    """A few cycles, whose noise is drawn together."""
    width, dtype = state.sums.shape[0], state.sums.dtype

    def draw(trial: Trial, block: jax.Array) -> jax.Array:
        key = trial.key if stream is None else jax.random.fold_in(trial.key, stream)
        return noise_block(lanes.noise, key, block, width, dtype)

    fresh = lanes.each(draw, (state.cycle - 1) // BLOCK)
    return _loops.fori_loop(0, BLOCK, lambda j, state: cycle(lanes, fresh[j], state), state)


def _finish(lanes: Lanes, state: _State) -> _State:
    """Finish lanes that are all locked: only the noise of their s coordinates is drawn, with its
    exact covariance sigma² (V⁻¹)_SS / c.
    """
    diagonal = lanes.trial.plan.solve.ndim == 1 + (lanes.axes.plan.solve is not None)

    def localise(trial: Trial, indices, sums):
        """theta and the accumulated error on the support, and a square root of (V⁻¹)_SS, or its
        diagonal.
        """
        kept, solve, dtype = indices >= 0, trial.plan.solve, sums.dtype
        image = take(apply_solve(solve, sums), indices)
        if diagonal:
            return take(trial.theta, indices), image, jnp.abs(take(solve, indices))
        rows = jnp.where(kept[:, None], solve[indices], 0.0)
        unused = jnp.diag(jnp.where(kept, 0.0, 1.0).astype(dtype))
        root = jnp.linalg.cholesky(jnp.matmul(rows, rows.T, precision="highest") + unused)
        return take(trial.theta, indices), image, jnp.where(kept[:, None], root, 0.0)

    theta, image, root = lanes.each(localise, state.indices, state.sums)

    def shortfall(trial: Trial, part, theta, image, cycle):
        action = part.argmax(theta + image * (trial.sigma / cycle.astype(image.dtype)))
        return trial.best.value - jnp.sum(theta * action)

    def cycle(lanes: Lanes, fresh: jax.Array, state: _State) -> _State:
        moved = root * fresh if diagonal else jnp.sum(root * fresh[None], axis=1)
        state = state._replace(sums=state.sums + moved)
        gaps = lanes.each(shortfall, state.part, theta, state.sums, state.cycle)
        return _play(lanes, state, gaps, state.locked, lambda _, state: state.indices)

    return _loops.while_loop(
        lambda state: jnp.any(state.time < lanes.horizon),
        functools.partial(_block, lanes, cycle, _SUPPORT_STREAM),
        state._replace(sums=image),
    )


def simulate_lanes(noise: Any, draws: str, trial: Trial, axes: Trial, size: int) -> Run:
    """Simulate `size` lanes; `axes` says which leaves of `trial` have them as their last axis
    (−1) and which are shared (None).
    """
    lanes = Lanes(noise, trial, axes, size)
    times = lanes.each(lambda trial: trial.times)
    lanes = lanes._replace(horizon=lanes.each(lambda trial: trial.horizon), times=times)
    number, dimension = trial.plan.basis.shape[:2]
    floats, ints = jnp.zeros(size, trial.theta.dtype), jnp.zeros(size, jnp.int32)
    indices = jnp.broadcast_to(
        no_choice(lanes.algorithm.sparsity, dimension)[0][:, None], (lanes.algorithm.sparsity, size)
    )
    state = _State(
        cycle=jnp.int32(1),
        time=ints,
        sums=jnp.zeros((number, size), floats.dtype),
        squares=floats,
        locked=jnp.zeros(size, bool),
        lock_cycle=ints - 1,
        indices=indices,
        part=lanes.each(_restrict, indices),
        total=Total(floats, floats),
        recorded=jnp.zeros(times.shape, floats.dtype),
        explored=jnp.zeros(times.shape, jnp.int32),
        chosen=jnp.full((lanes.algorithm.sparsity, *times.shape), -1, jnp.int32),
        next_time=_first_after(times, 0),
    )

    def unfinished(state: _State):
        going = state.time < lanes.horizon
        return jnp.any(going & ~state.locked if draws == "support" else going)

    state = _loops.while_loop(unfinished, functools.partial(_block, lanes, _cycle, None), state)
    if draws == "support":
        state = _finish(lanes, state)
    lock_time = jnp.where(state.locked, state.lock_cycle * number, -1)
    status = status_of(jnp.all(jnp.isfinite(state.sums), axis=0))
    played = state.recorded, state.explored, state.chosen
    regret, rewards, recovered = lanes.each(_outcome, *played)
    found = state.locked, lock_time, jnp.sort(state.indices, axis=0)
    return Run(regret, times, *found, status, rewards, recovered)


def simulate_cycles(noise: Any, draws: str, trial: Trial) -> Run:
    """One lane, written so that `vmap`, also nested, runs all lanes in one loop with shared scalars
    instead of masking every array.
    """
    leaves, tree = jax.tree.flatten(trial)
    run = _with_lanes(noise, draws, tree, tuple(leaves), (None,) * len(leaves), 1)
    return jax.tree.map(lambda leaf: leaf[..., 0], run)


def _with_lanes(noise: Any, draws: str, tree: Any, leaves: tuple, axes: tuple, size: int) -> Run:
    @jax.custom_batching.custom_vmap
    def call(*leaves):
        trial, where = jax.tree.unflatten(tree, leaves), jax.tree.unflatten(tree, axes)
        return simulate_lanes(noise, draws, trial, where, size)

    @call.def_vmap
    def batched(count, in_batched, *leaves):
        merged, merged_axes = [], []
        for leaf, axis, is_batched in zip(leaves, axes, in_batched, strict=True):
            if is_batched:
                leaf = jnp.moveaxis(
                    leaf, 0, -1
                )  # [..., lanes] if it had lanes, [..., lanes, count]
                if axis is None:
                    leaf = jnp.broadcast_to(leaf[..., None, :], (*leaf.shape[:-1], size, count))
            elif axis is not None:
                leaf = jnp.broadcast_to(leaf[..., None], (*leaf.shape, count))
            has_lanes = is_batched or axis is not None
            merged.append(leaf.reshape(*leaf.shape[:-2], size * count) if has_lanes else leaf)
            merged_axes.append(-1 if has_lanes else None)
        run = _with_lanes(noise, draws, tree, tuple(merged), tuple(merged_axes), size * count)
        split = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], size, count), -1, 0), run
        )
        return split, jax.tree.map(lambda _: True, split)

    return call(*leaves)
