"""The utility objective: least squares of the utility on the chosen sets, u_t = sum_{j in a_t}
<theta_j, psi_t> + constant + noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import designs, group_lasso
from jaxsac.control.data.digest import Digest
from jaxsac.control.data.families import Split
from jaxsac.control.data.log import Log
from jaxsac.control.fits.tuning import Entries, largest_moment, multiplier_quantile, theory_rate
from jaxsac.control.imitation.working import capacity
from jaxsac.group_lasso.methods.loop.fista import State
from jaxsac.prox import Groups, Penalty
from jaxsac.prox.operators import Level
from jaxsac.solution import Status

SCALE_ROUNDS = 20


class UtilityFit(NamedTuple):
    tools: np.ndarray  # positions in digest.used
    weights: np.ndarray
    constant: float
    status: Status
    stats: dict[str, Any]


def solve(
    data: Digest,
    log: Log,
    lam: float,
    *,
    intercept: bool,
    tol: float,
    max_steps: int,
    start: tuple[np.ndarray, np.ndarray] | None,
    families: Split | None = None,
) -> UtilityFit:
    """Group lasso through `group_lasso.solve` on the used tools alone: an unused one has gradient
    zero, hence weights zero, exactly.
    """
    design, groups, utilities = _problem(data, log)
    q = data.feature_sums.shape[1]
    coef = np.zeros((groups.num_groups, q))
    if start is not None:
        coef[start[0]] = start[1]
    zero, one = jnp.zeros((), design.dtype), jnp.ones((), design.dtype)
    flat = jnp.asarray(coef.reshape(-1), design.dtype)
    state = State(flat, zero, flat, zero, one, one)  # from nothing too: one compilation for both
    options = {
        "intercept": intercept,
        "tol": tol,
        "max_steps": max_steps,
        "state": state,
        **_penalty(groups, q, families),
    }
    solution = group_lasso.solve(design, utilities, groups, lam, **options)
    coef = np.asarray(solution.value.coef, np.float64).reshape(groups.num_groups, q)
    tools = np.flatnonzero(np.any(coef != 0, axis=1))
    names = ("objective", "gap", "scale", "num_steps")
    return UtilityFit(
        tools,
        coef[tools],
        float(solution.value.intercept),
        Status(int(solution.status)),
        {name: solution.stats[name] for name in names},
    )


def refit(
    data: Digest,
    log: Log,
    fitted: UtilityFit,
    *,
    intercept: bool,
    ridge: float,
    tol: float,
    max_steps: int,
) -> UtilityFit:
    """Least squares on the support with ridge/2 ||theta||^2, by conjugate gradients; the gap is
    ||gradient||^2 / (2 ridge), by strong convexity.
    """
    _, _, utilities = _problem(data, log)
    contexts = jnp.asarray(np.asarray(log.contexts))
    q = contexts.shape[1]
    lookup = np.full(data.num_actions + 1, -1, np.int32)
    lookup[data.used[fitted.tools]] = np.arange(fitted.tools.size)
    actions = lookup[np.asarray(log.actions)]
    scale = float(
        0.5 * np.mean((np.asarray(utilities) - (np.mean(utilities) if intercept else 0)) ** 2)
    )
    if fitted.tools.size == 0:
        return fitted._replace(stats={"refit_objective": scale, "refit_gap": 0.0})
    design = designs.budgeted_choice(actions, contexts, fitted.tools.size)
    coef, gap, objective, constant = _ridge(
        design,
        utilities,
        jnp.asarray(fitted.weights.reshape(-1), contexts.dtype),
        jnp.asarray(ridge, contexts.dtype),
        tol * scale,
        max_steps,
        intercept,
    )
    status = (
        Status.CONVERGED
        if float(gap) <= tol * scale
        else (Status.MAX_STEPS if np.isfinite(float(gap)) else Status.NONFINITE)
    )
    stats = {"refit_objective": objective, "refit_gap": gap}
    return UtilityFit(
        fitted.tools, np.asarray(coef, np.float64).reshape(-1, q), float(constant), status, stats
    )


def _ridge(design, utilities, start, ridge, allowed: float, max_steps: int, intercept: bool):
    records = utilities.shape[0]

    def centre(x):
        return x - jnp.mean(x) if intercept else x

    def gradient(coef, target):
        return (
            design.adjoint(centre(centre(design.predict(coef)) - target)) / records + ridge * coef
        )

    @jax.jit
    def run(start, target):
        def step(carry):
            coef, residual, search, square, steps = carry
            product = gradient(search, jnp.zeros_like(target))
            length = square / jnp.vdot(search, product)
            coef, residual = coef + length * search, residual - length * product
            new = jnp.vdot(residual, residual)
            return coef, residual, residual + new / square * search, new, steps + 1

        def more(carry):
            return (carry[3] / (2 * ridge) > 0.5 * allowed) & (carry[4] < max_steps)

        residual = -gradient(start, target)
        carry = (start, residual, residual, jnp.vdot(residual, residual), jnp.asarray(0))
        return jax.lax.while_loop(more, step, carry)[0]

    target = centre(utilities)
    coef = run(start, target)
    final = gradient(coef, target)
    error = centre(design.predict(coef)) - target
    objective = 0.5 * jnp.mean(error**2) + ridge / 2 * jnp.vdot(coef, coef)
    constant = jnp.mean(utilities - design.predict(coef)) if intercept else 0.0
    return coef, jnp.vdot(final, final) / (2 * ridge), objective, constant


def _penalty(groups: Groups, num_features: int, families: Split | None) -> dict[str, Any]:
    """What families add to the keywords of `group_lasso.solve`; the padding tools are families of
    one.
    """
    if families is None:
        return {}
    label = np.unique(families.label, return_inverse=True)[1].reshape(-1)
    padding = groups.num_groups - label.size
    label = np.append(label, label.max(initial=-1) + 1 + np.arange(padding))
    level = Level(Groups.from_labels(np.repeat(label, num_features)), families.share)
    return {
        "weights": np.full(groups.num_groups, 1 - families.share),
        "penalty": Penalty(levels=(level,)),
    }


def lam_max(data: Digest, log: Log, *, intercept: bool, families: Split | None = None) -> float:
    design, groups, utilities = _problem(data, log)
    return float(
        group_lasso.lam_max(
            design,
            utilities,
            groups,
            intercept=intercept,
            **_penalty(groups, data.feature_sums.shape[1], families),
        )
    )


def simulated(
    key: jax.Array, data: Digest, log: Log, *, intercept: bool, families: Split | None = None
) -> float:
    """The multiplier quantile of max_j ||(1/T) sum_{t: j in a_t} eps_t r_t psi_t||, r_t = u_t -
    mean u: the pilot has no weights.
    """
    residual = _residual(log, intercept)
    entries = Entries(data.entry_tool, data.entry_record, residual[data.entry_record])
    return multiplier_quantile(
        key, data, entries, residual, np.zeros(data.used.size), 0.0, families
    )


def scaled(
    key: jax.Array, data: Digest, log: Log, *, intercept: bool, families: Split | None = None
) -> float:
    """lam = lam_1 sigma with lam_1 the multiplier quantile for noise of unit variance and sigma^2
    the mean square residual of the fit at lam: alternate from the model without weights, sigma
    falling, until it stands. sigma stays above 1 % of the utilities' spread.
    """
    spread = _residual(log, intercept)
    ones = np.ones(data.num_records)
    entries = Entries(data.entry_tool, data.entry_record, ones[data.entry_record])
    unit = multiplier_quantile(key, data, entries, ones, np.zeros(data.used.size), 0.0, families)
    contexts = np.asarray(log.contexts, np.float64)
    least = 0.01 * float(np.sqrt(np.mean(spread**2)))
    sigma, start = 100 * least, None
    for _ in range(SCALE_ROUNDS):
        if not sigma > 0 or not unit > 0:
            return unit * sigma
        fitted = solve(
            data,
            log,
            unit * sigma,
            intercept=intercept,
            tol=1e-4,
            max_steps=20_000,
            start=start,
            families=families,
        )
        start = (fitted.tools, fitted.weights)
        weights = np.zeros((data.used.size, contexts.shape[1]))
        weights[fitted.tools] = fitted.weights
        chosen = np.einsum("eq,eq->e", weights[data.entry_tool], contexts[data.entry_record])
        residual = np.asarray(log.utilities, np.float64) - np.bincount(
            data.entry_record, chosen, data.num_records
        )
        residual = residual - residual.mean() * intercept
        before, sigma = sigma, max(float(np.sqrt(np.mean(residual**2))), least)
        if abs(sigma - before) <= 1e-3 * before:
            break
    return unit * sigma


def theory(data: Digest, log: Log, *, intercept: bool) -> float:
    """sigma_g^2 = sigma^2 max_j lambda_max((1/T) sum_{t: j in a_t} psi_t psi_t'), sigma^2 the
    variance of the utilities.
    """
    rows = np.asarray(log.contexts, np.float64)[data.entry_record]
    return theory_rate(
        float(np.mean(_residual(log, intercept) ** 2))
        * largest_moment(data.entry_tool, rows)
        / data.num_records,
        data,
    )


def _residual(log: Log, intercept: bool) -> np.ndarray:
    utilities = np.asarray(log.utilities, np.float64)
    return utilities - utilities.mean() if intercept else utilities


def _problem(data: Digest, log: Log):
    contexts = jnp.asarray(np.asarray(log.contexts))
    lookup = np.full(data.num_actions + 1, -1, np.int32)
    lookup[data.used] = np.arange(data.used.size)
    tools = capacity(data.used.size)  # tools without records keep the shapes few
    design = designs.budgeted_choice(lookup[np.asarray(log.actions)], contexts, tools)
    utilities = jnp.asarray(np.asarray(log.utilities), contexts.dtype)
    return design, Groups.equal(num_groups=tools, size=contexts.shape[1]), utilities
