"""Regret of an algorithm on a linear bandit with a known parameter."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import (
    anything,
    arguments,
    choice,
    either,
    function,
    integer,
    key,
    real,
    record as a_record,
)
from jaxsac.bandits.engine.cycles import simulate_cycles
from jaxsac.bandits.engine.steps import (
    Run,
    Setting,
    Trial,
    simulate_blocks,
    simulate_steps,
    status_of,
)
from jaxsac.bandits.phased.rule import FOREVER
from jaxsac.bandits.phased.schedule import Phased, cast_algorithm, make_plan
from jaxsac.bandits.sets.action_set import ActionSet, Selection, all_finite, sized
from jaxsac.bandits.sets.supports import benchmark_of, cast
from jaxsac.bandits.stepwise.proof import Proof

_NUM_TIMES = 64
_POLICY = ("init", "act", "update", "benchmark", "support")


@arguments(
    key=key(),
    algorithm=anything("an algorithm of `jaxsac.bandits`, or one's own with the same methods"),
    theta=real("d"),
    sigma=real(low=0, below=float("inf")),
    horizon=integer(low=1, below=FOREVER),
    record=integer("K", low=0),
    benchmark=either(choice("optimal", "greedy", "alpha"), a_record(Selection)),
    alpha=real(low=0, high=1),
    noise=either(choice("gaussian", "rademacher", "uniform"), function("(key, shape) -> draws")),
    draws=choice("all", "support"),
    engine=choice("auto", "cycle", "step"),
    offer=anything("arms [K, d], a mask [d], another pytree, or a function of a key"),
)
def simulate(
    key: jax.Array,
    algorithm: Any,
    theta: jax.Array,
    *,
    sigma: jax.Array | float,
    horizon: jax.Array | int,
    record: jax.Array | None = None,
    benchmark: str | Selection = "optimal",
    alpha: jax.Array | float | None = None,
    noise: str | Callable[[jax.Array, tuple[int, ...]], jax.Array] = "gaussian",
    draws: str = "all",
    engine: str = "auto",
    offer: Any = None,
) -> Run:
    """Play `horizon` steps against rewards ⟨theta, x⟩ + sigma · noise.

        regret = Σ_t (benchmark − ⟨theta, x_t⟩)

    * `key`: consumed.
    * `theta`: [d].
    * `sigma`: ≥ 0, the true scale of the noise (the algorithm has its own belief).
    * `horizon`: ≥ 1 and below 2^30, may be traced.
    * `record`: int [K], the times of interest, by default 64 in geometric progression; times after
      the horizon count as the horizon.
    * `benchmark`: "optimal" is the reward of the best s-sparse action, "greedy" that of the greedy
      support of theta, "alpha" `alpha` times the optimal one. Or a `Selection`, as of
      `branch_and_bound` where there are too many supports to visit.
    * `alpha`: in [0, 1], for the benchmark "alpha" alone.
    * `noise`: "gaussian", "rademacher", "uniform" (variance 1), or a function (key, shape) ->
      draws, defined once: a new function is a new compilation.
    * `engine`: "cycle" for phased algorithms (one iteration per cycle, exact at every time) and,
      with Gaussian noise on a fixed set, for `thompson` and `prove_support` (one per action that is
      kept, equal in law), "step" for all that are not phased; "auto" takes "cycle" where it can.
    * `draws`: "all"; "support" draws, after the lock, only the noise of the locked coordinates:
      equal in law, not draw by draw, faster, Gaussian noise only; under `vmap` it starts when all
      lanes are locked or done.
    * `offer`: what each step makes available, for the step engine: an array or a pytree handed to
      `algorithm.act` (the arms [K, d] of `lin_ucb` and `lin_ts`, the mask [d] of
      `adaptive_greedy`), the same for each of T ≥ `horizon` steps (masks [T, d], arms [T, K, d],
      or sets: one `ActionSet` whose arrays have a leading axis [T], as from `jax.vmap(Box)`; the
      limits [d] of one Box would be read as T = d), or a function of a key, defined once, that
      draws it anew. A `Selection` as benchmark is the same at every step.

    Returns: a `Run`; a NaN or an infinity in theta, the offer or the noise, or a traced one in
    sigma or the algorithm, gives NaN regret, no lock and the status NONFINITE. Batch with
    `jax.vmap` or `run_trials`, which the cycle engine turns into one hand-written loop over all
    lanes. Not differentiable: decisions are discrete.

    Raises: ValueError for numbers out of range, and for what an engine cannot do.

    Source: arXiv 2605.10151, Algorithms 1 and 2 and equation 5 (regret).
    """
    _checks.require(
        not isinstance(algorithm, type) and all(hasattr(algorithm, name) for name in _POLICY[:3]),
        "algorithm must be one of this room, as from apsee(...), or have the methods"
        f" {', '.join(_POLICY)}.",
    )
    best = None
    if isinstance(benchmark, Selection):
        _checks.require(
            np.shape(benchmark.mask) == theta.shape,
            f"benchmark must be a Selection for theta [{theta.shape[0]}], got one for"
            f" {list(np.shape(benchmark.mask))}.",
        )
        value = real().take("benchmark", benchmark.value, theta.dtype)
        mask = jnp.asarray(benchmark.mask).astype(bool)
        best = benchmark._replace(value=value, mask=mask, gap=jnp.zeros(()))
        benchmark = "given"
    _checks.require(
        (benchmark == "alpha") == (alpha is not None),
        "alpha and benchmark='alpha' go together: give both, or neither.",
    )
    dimension = sized(algorithm).get("d", theta.shape[0])
    _checks.require(
        dimension == theta.shape[0],
        f"theta must have shape [{dimension}], as the set of the algorithm has, got"
        f" {list(theta.shape)}.",
    )
    kind = getattr(algorithm, "offers", None)
    sets = isinstance(offer, ActionSet)
    schedule = sets or (kind is not None and np.ndim(offer) == len(kind.shape) + 1)
    phased = isinstance(algorithm, Phased)
    _checks.require(
        offer is None or type(algorithm) not in (Phased, Proof),
        "phased algorithms and prove_support play a fixed set: leave offer out, or use"
        " adaptive_greedy.",
    )
    by_cycles = phased or (
        hasattr(algorithm, "length") and noise == "gaussian" and not (callable(offer) or schedule)
    )
    if engine == "auto":
        engine = "cycle" if by_cycles else "step"
    _checks.require(
        engine == "cycle" if phased else engine == "step" or by_cycles,
        "the cycle engine runs phased algorithms, which no other does, and with Gaussian noise"
        " thompson and prove_support: all others need engine='step'.",
    )
    if draws == "support":
        _checks.require(
            phased and noise == "gaussian",
            "draws='support' needs a phased algorithm and Gaussian noise: use draws='all'.",
        )
        _checks.require(
            algorithm.rule.verify is not None and not algorithm.estimate_sigma,
            "draws='support' needs an algorithm that locks: use draws='all'.",
        )
    times = _geometric_times(horizon) if record is None else jnp.minimum(record, horizon)
    draw = None
    if callable(offer):
        draw, offer = offer, None
    elif sets:
        offer = cast(offer, theta.dtype)
    elif offer is not None and kind is not None:
        given = replace(kind, shape=("T", *kind.shape)) if schedule else kind
        offer = given.take("offer", offer, theta.dtype, d=theta.shape[0])
    if schedule:
        steps = min(([*np.shape(leaf), 0])[0] for leaf in jax.tree.leaves(offer))
        _checks.require(
            not _checks.is_concrete(horizon) or steps >= horizon,
            f"offer has {steps} steps, fewer than the horizon: give one for each, sets with arrays"
            " that have a leading axis [T]; one set for all steps is the algorithm's action_set.",
        )
    numbers: Any = jax.tree.map(jnp.asarray, (sigma, horizon, alpha))  # one trace for all kinds
    trial = Trial(key, theta, numbers[0], numbers[1], times, numbers[2], offer, best)
    setting = Setting(benchmark, noise, draws, engine, draw, schedule)
    return _simulate(cast_algorithm(algorithm, theta.dtype), trial, setting)


def _geometric_times(horizon: Any) -> jax.Array:
    fractions = jnp.linspace(0.0, 1.0, _NUM_TIMES)
    times = jnp.round(jnp.exp(fractions * jnp.log(horizon.astype(fractions.dtype)))).astype(
        jnp.int32
    )
    return jnp.minimum(times, horizon).at[-1].set(horizon)


@partial(jax.jit, static_argnames="setting")
def _simulate(algorithm: Any, trial: Trial, setting: Setting) -> Run:
    run = _run(algorithm, trial, setting)
    finite = run.status == status_of(jnp.asarray(True))
    finite &= ~jnp.any(jnp.isnan(run.regret)) & all_finite((algorithm, trial))
    floats = (run.regret, run.rewards, run.recovered)
    regret, rewards, recovered = jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), floats)
    return Run(
        regret,
        run.times,
        run.locked & finite,
        jnp.where(finite, run.lock_time, -1),
        jnp.where(finite, run.support, -1),
        status_of(finite),
        rewards,
        recovered,
    )


def _run(algorithm: Any, trial: Trial, setting: Setting) -> Run:
    if not isinstance(algorithm, Phased):
        if setting.engine == "cycle":
            return simulate_blocks(algorithm, trial, setting.benchmark)
        return simulate_steps(algorithm, trial, setting)
    theta, best = trial.theta, trial.best
    plan = make_plan(algorithm, theta.shape[0], theta.dtype)
    if best is None:
        given = algorithm.sparsity, setting.benchmark, trial.alpha
        best = benchmark_of(plan.action_set, theta, *given)
    trial = trial._replace(alpha=None, best=best, plan=plan)
    return simulate_cycles(setting.noise, setting.draws, trial)
