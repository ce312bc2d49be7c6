"""The objective "utility": least squares of the utility on the chosen sets, u_t = Σ_{j ∈ a_t} ⟨θ_j,
ψ_t⟩ + constant + noise; its lam and its fit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import designs, group_lasso
from jaxsac._iterate import Certificate, Outcome
from jaxsac._linear import conjugate_gradient, dot
from jaxsac.control.data.digest import Digest
from jaxsac.control.fits.tuning import Entries, largest_moment, multiplier_quantile, theory_rate
from jaxsac.control.imitation.working import FitState, capacity
from jaxsac.group_lasso import State
from jaxsac.prox import Groups, Level, Penalty
from jaxsac.solution import Status, verdict

MAX_STEPS = 20_000
_SCALE_ROUNDS = 20
_SCALE_TOL = 1e-4


class Fitted(NamedTuple):
    """Where a solve ended."""

    tools: np.ndarray  # int [k]: positions in digest.used
    coef: np.ndarray  # [k, q]
    constant: float
    outcome: Outcome
    objective: Any


def lam_max(data: Digest) -> float:
    return float(group_lasso.lam_max(problem(data)))


def simulated(key: jax.Array, data: Digest) -> float:
    """The multiplier quantile of max_j ‖(1/T) Σ_{t: j ∈ a_t} ε_t r_t ψ_t‖, r_t = u_t − mean u: the
    pilot has no coefficients.
    """
    return noise_quantile(key, data, _spread(data))


def theory(key: jax.Array, data: Digest) -> float:
    """σ_g² = σ² max_j λ_max((1/T) Σ_{t: j ∈ a_t} ψ_t ψ_t'), σ² the variance of the utilities."""
    rows = np.asarray(data.task.log.contexts, np.float64)[data.entry_record]
    moment = largest_moment(data.entry_tool, rows) / data.task.num_records
    return theory_rate(float(np.mean(_spread(data) ** 2)) * moment, data)


def scaled(key: jax.Array, data: Digest) -> float:
    """lam = lam₁ σ with lam₁ the multiplier quantile for noise of unit variance and σ² the mean
    square residual of the fit at lam: alternate from the model without coefficients, σ falling,
    until it stands. σ stays above 1 % of the utilities' spread.
    """
    unit = noise_quantile(key, data, np.ones(data.task.num_records))
    least = 0.01 * float(np.sqrt(np.mean(_spread(data) ** 2)))
    sigma, start = 100 * least, None
    for _ in range(_SCALE_ROUNDS):
        if not sigma > 0 or not unit > 0:
            break
        found = solve(data, unit * sigma, _SCALE_TOL, MAX_STEPS, start)
        start = (found.tools, found.coef)
        before = sigma
        sigma = max(float(np.sqrt(np.mean(residual(data, *start) ** 2))), least)
        if abs(sigma - before) <= 1e-3 * before:
            break
    return unit * sigma


LAMS = {"simulated": simulated, "theory": theory, "scaled": scaled}


def noise_quantile(key: jax.Array, data: Digest, noise: np.ndarray) -> float:
    """The multiplier quantile of max_j ‖(1/T) Σ_{t: j ∈ a_t} ε_t noise_t ψ_t‖."""
    entries = Entries(data.entry_tool, data.entry_record, noise[data.entry_record])
    return multiplier_quantile(key, data, entries, noise, np.zeros(data.used.size), 0.0)


def residual(data: Digest, tools: np.ndarray, coef: np.ndarray) -> np.ndarray:
    """u_t minus its prediction [T], with the best constant; tools [k] by position, coef [k, q]."""
    full = np.zeros((data.used.size, data.task.num_features))
    full[tools] = coef
    contexts = np.asarray(data.task.log.contexts, np.float64)
    chosen = np.einsum("eq,eq->e", full[data.entry_tool], contexts[data.entry_record])
    left = np.asarray(data.task.log.utilities, np.float64)
    left = left - np.bincount(data.entry_record, chosen, data.task.num_records)
    return left - left.mean() if _with_constant(data) else left


def fit(
    data: Digest, lam: float, *, tol: float, max_steps: int, state: FitState | None, refit: bool
) -> tuple[FitState, Status, dict[str, Any]]:
    """The penalised fit, its status and numbers; with `refit` the one on its support, by a ridge of
    1/T alone.
    """
    start = None
    if state is not None:
        known = np.isin(state.tools, data.used)
        start = (np.searchsorted(data.used, state.tools[known]), state.coef[known])
    found = solve(data, lam, tol, max_steps, start)
    status = found.outcome.status
    stats = {"lam_max": lam_max(data), "objective": found.objective, **found.outcome.stats}
    if refit:
        found = _refit(data, found, tol, max_steps)
        certificate = found.outcome.certificate
        stats |= {"refit_objective": found.objective, "refit_gap": certificate.error}
        status = status if status != Status.CONVERGED else found.outcome.status
    stats["constant"] = found.constant
    reached = FitState(data.used[found.tools], found.coef, np.zeros(data.task.num_actions))
    return reached, status, stats


def solve(
    data: Digest, lam: float, tol: float, max_steps: int = MAX_STEPS, start: Any = None
) -> Fitted:
    """Group lasso through `group_lasso.solve` on the used tools alone: an unused one has gradient
    zero, hence coefficients zero, exactly.
    """
    asked = problem(data)
    coef = np.zeros((asked.groups.num_groups, data.task.num_features))
    if start is not None:
        coef[start[0]] = start[1]
    zero, one = jnp.zeros((), asked.dtype), jnp.ones((), asked.dtype)
    flat = jnp.asarray(coef.reshape(-1), asked.dtype)
    state = State(flat, zero, flat, zero, one, one)  # from nothing too: one compilation for both
    solution = group_lasso.solve(asked, lam=lam, tol=tol, max_steps=max_steps, state=state)
    coef = np.asarray(solution.value.coef, np.float64).reshape(coef.shape)
    tools = np.flatnonzero(np.any(coef != 0, axis=1))
    stats = solution.stats
    certificate = Certificate(stats["gap"], stats["rounding"], stats["scale"])
    outcome = Outcome(None, certificate, Status(int(solution.status)), stats["num_steps"])
    constant = float(solution.value.intercept)
    return Fitted(tools, coef[tools], constant, outcome, stats["objective"])


def _refit(data: Digest, found: Fitted, tol: float, max_steps: int) -> Fitted:
    """Least squares on the support with ridge/2 ‖θ‖², ridge = 1/T, by conjugate gradients; the gap
    is ‖gradient‖² / (2 ridge), by strong convexity.
    """
    contexts = jnp.asarray(np.asarray(data.task.log.contexts))
    utilities = jnp.asarray(np.asarray(data.task.log.utilities), contexts.dtype)
    dtype, size = contexts.dtype, found.tools.size

    def centre(x):
        return x - jnp.mean(x) if _with_constant(data) else x

    target = centre(utilities)
    scale = 0.5 * jnp.mean(target**2)

    def ended(gap: jax.Array) -> Outcome:
        certificate = Certificate(gap, jnp.zeros_like(gap), scale)
        status = verdict(certificate, tol, progress=True, more=False)
        return Outcome(None, certificate, Status(int(status)), max_steps)

    if size == 0:
        return found._replace(outcome=ended(jnp.zeros_like(scale)), objective=scale)
    design = designs.BudgetedChoice(_renumbered(data, data.used[found.tools]), contexts, size)
    ridge = jnp.asarray(1 / data.task.num_records, dtype)

    def gradient(coef, target):
        error = centre(centre(design.predict(coef)) - target)
        return design.adjoint(error) / data.task.num_records + ridge * coef

    @jax.jit
    def run(start, target):
        zero = jnp.zeros_like(start)
        coef = conjugate_gradient(
            lambda direction: gradient(direction, jnp.zeros_like(target)),
            -gradient(zero, target),
            start=start,
            tol=0.0,
            floor=jnp.sqrt(ridge * tol * scale),
            max_steps=max_steps,
        ).x
        final, error = gradient(coef, target), centre(design.predict(coef)) - target
        objective = 0.5 * jnp.mean(error**2) + ridge / 2 * dot(coef, coef)
        return coef, dot(final, final) / (2 * ridge), objective

    coef, gap, objective = run(jnp.asarray(found.coef.reshape(-1), dtype), target)
    constant = jnp.mean(utilities - design.predict(coef)) if _with_constant(data) else 0.0
    values = np.asarray(coef, np.float64).reshape(size, -1)
    return Fitted(found.tools, values, float(constant), ended(gap), objective)


def problem(data: Digest) -> group_lasso.Problem:
    """The group lasso on the used tools."""
    size, families = capacity(data.used.size), data.families  # tools without records: few shapes
    contexts = jnp.asarray(np.asarray(data.task.log.contexts))
    design = designs.BudgetedChoice(_renumbered(data, data.used), contexts, size)
    groups = Groups.equal(num_groups=size, size=data.task.num_features)
    weights = penalty = None
    if families is not None:
        label = np.unique(families.label, return_inverse=True)[1].reshape(-1)
        beside = np.arange(size - label.size)  # the padding tools are families of one
        label = np.append(label, label.max(initial=-1) + 1 + beside)
        together = Groups.from_labels(np.repeat(label, data.task.num_features))
        weights = np.full(size, 1 - families.share, design.dtype)
        penalty = Penalty(levels=(Level(together, families.share),))
    return group_lasso.Problem(
        design,
        jnp.asarray(np.asarray(data.task.log.utilities), contexts.dtype),
        groups,
        weights=weights,
        penalty=penalty,
        intercept=_with_constant(data),
    )


def _renumbered(data: Digest, tools: np.ndarray) -> jax.Array:
    """The actions in the numbering of `tools`, -1 for others."""
    lookup = np.full(data.task.num_actions + 1, -1, np.int32)
    lookup[tools] = np.arange(tools.size)
    return jnp.asarray(lookup[np.asarray(data.task.log.actions)])


def _spread(data: Digest) -> np.ndarray:
    """u_t around their mean, if there is a constant."""
    return residual(data, np.zeros(0, int), np.zeros((0, data.task.num_features)))


def _with_constant(data: Digest) -> bool:
    return data.task.intercept == "shared"
