"""Hypergradients with default settings on problems with known answers: the true error beside the
one that the certificate estimates.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.harness import Options
from jaxsac import Status, bilevel
from jaxsac.problems import bilevel as problems, bilevel_rl


class Bed(NamedTuple):
    """A hypergradient to compute, and its right value."""

    name: str
    problem: bilevel.Problem
    x: Any
    y0: Any
    data: Any
    exact: Any


def quadratic_levels(dtype: Any) -> Iterator[Bed]:
    """h = x − 1 in any units of the two levels."""

    def upper(x, y, data):
        return data[0] * jnp.sum((y - 1) ** 2) / 2

    def lower(x, y, data):
        return data[1] * jnp.sum((y - x) ** 2)

    problem, x = bilevel.Problem(upper, lower), jnp.asarray([3.0, 5.0], dtype)
    for f, g in ((1, 1), (1, 1e-5), (1, 1e-9), (1e-4, 1), (1e-7, 1), (1e-9, 1e9), (1e6, 1e-6)):
        units = jnp.asarray(f, dtype), jnp.asarray(g, dtype)
        name = f"upper x {f:g}, lower x {g:g}"
        yield Bed(name, problem, x, jnp.zeros(2, dtype), units, f * np.asarray([2.0, 4.0]))


def returns(dtype: Any) -> Iterator[Bed]:
    """Ridge regression of daily returns, in units of 1e-2."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 20)) * 0.01
    coef = rng.normal(size=20) * (np.arange(20) < 5) * 0.3
    t = X @ coef + rng.normal(size=500) * 0.01
    H = X[:250].T @ X[:250] / 250 + 1e-4 * np.eye(20)
    y = np.linalg.solve(H, X[:250].T @ t[:250] / 250)
    pull = X[250:].T @ (X[250:] @ y - t[250:]) / 250
    data = tuple(jnp.asarray(part, dtype) for part in (X[:250], t[:250], X[250:], t[250:]))
    problem = bilevel.Problem(
        lambda x, y, data: 0.5 * jnp.mean((data[2] @ y - data[3]) ** 2),
        lambda x, y, data: (
            0.5 * jnp.mean((data[0] @ y - data[1]) ** 2) + 0.5e-4 * jnp.sum(jnp.exp(x) * y**2)
        ),
    )
    zero = jnp.zeros(20, dtype)
    yield Bed("ridge on returns", problem, zero, zero, data, -1e-4 * y * np.linalg.solve(H, pull))


def conditions(dtype: Any) -> Iterator[Bed]:
    rng = np.random.default_rng(1)
    for condition in (1e2, 1e4, 1e6):
        Q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
        A = (Q * np.geomspace(1 / condition, 1, 30)) @ Q.T
        C, a, x = rng.normal(size=(5, 30)), rng.normal(size=30), rng.normal(size=5)
        data = tuple(jnp.asarray(part, dtype) for part in (A, C, a))

        def lower(x, y, data):
            gap = y - data[2] - data[1].T @ x
            return 0.5 * gap @ data[0] @ gap

        problem = bilevel.Problem(lambda x, y, data: jnp.sum((y - 1) ** 2) / 2, lower)
        exact = C @ (a + C.T @ x - 1)
        yield Bed(
            f"quadratic, condition {condition:g}",
            problem,
            jnp.asarray(x, dtype),
            jnp.zeros(30, dtype),
            data,
            exact,
        )


def processes(dtype: Any) -> Iterator[Bed]:
    """Policies as logits; temperatures are in units of the rewards'."""
    for states, unit, tau in (
        (8, 1.0, 0.5),
        (8, 1e-2, 0.5),
        (8, 1.0, 0.05),
        (8, 1.0, 2.0),
        (8, 1e-3, 0.05),
        (8, 1e3, 2.0),
        (50, 1.0, 0.5),
        (50, 1e-3, 0.5),
        (50, 1e3, 0.05),
    ):
        with jax.enable_x64(True):
            exact = exact_policy(states, unit, tau)
        bed = process(states, dtype)
        model, leader = leader_of(bed, unit)
        for penalty in ("value", "bellman"):
            yield Bed(
                f"{states} states, rewards x {unit:g}, temperature {tau:g}, {penalty}",
                bilevel.rl.policy_problem(model, leader, penalty=penalty),
                bed.x,
                jnp.zeros((states, 4), dtype),
                jnp.asarray(tau * unit, dtype),
                exact,
            )


def leader_of(bed: Any, unit: float) -> tuple[Any, Any]:
    mdp = bilevel.rl.MDP(bed.transition, bed.initial, bed.discount)

    def model(x):
        return mdp, unit * bed.reward(x)

    def leader(x, log_probs):
        value = bilevel.rl.expected_return(mdp, bed.leader_reward, log_probs)
        return -value + 0.1 * jnp.sum(x**2)

    return model, leader


def process(states: int, dtype: Any) -> Any:
    """The same one in both precisions."""
    bed = bilevel_rl.random_reward_bed(states, 4, 5, dtype=jnp.float32)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), bed)


def exact_policy(states: int, unit: float, tau: float) -> np.ndarray:
    """In float64, through the best policy."""
    bed = process(states, jnp.float64)
    model, leader = leader_of(bed, unit)

    def through(x):
        mdp, reward = model(x)
        best = bilevel.rl.soft_solve(mdp, reward, tau * unit, tol=1e-12).value
        return leader(x, best.log_probs)

    return np.asarray(jax.grad(through)(bed.x))


def tumours(dtype: Any) -> Iterator[Bed]:
    with jax.enable_x64(True):
        exact = bilevel.check_hypergradient(
            TUMOURS,
            jnp.full(30, -3.0, jnp.float64),
            jnp.zeros(30, jnp.float64),
            data=problems.breast_cancer(jnp.float64),
            tol=1e-12,
        ).implicit
    start = jnp.zeros(30, dtype)
    yield Bed("breast_cancer", TUMOURS, start - 3, start, problems.breast_cancer(dtype), exact)


TUMOURS = bilevel.Problem(problems.feature_weights_upper, problems.feature_weights_lower)


def found(bed: Bed) -> dict[str, Any]:
    """The status and the errors, relative to h."""
    solution = bilevel.hypergradient(bed.problem, bed.x, bed.y0, data=bed.data)
    ours = np.asarray(ravel_pytree(solution.value)[0], np.float64)
    exact = np.asarray(bed.exact, np.float64)
    size = np.linalg.norm(exact)
    return {
        "status": Status(int(solution.status)).name,
        "error": float(np.linalg.norm(ours - exact) / size),
        "estimate": float(solution.stats["error"] / size),
        "rounding bound": float(solution.stats["rounding"] / size),
        "products": int(solution.stats["num_steps"]),
    }


def table(options: Options, dtype: Any) -> list[dict[str, Any]]:
    """One row a problem."""
    makers = (quadratic_levels, returns, conditions, tumours, processes)
    beds = (bed for make in (makers[:1] if options.smoke else makers) for bed in make(dtype))
    return [{"problem": bed.name} | found(bed) for bed in options.progress(beds, "certificates")]


def units(options: Options, dtype: Any) -> list[dict[str, Any]]:
    """Regression on returns with one level, or both, in other units: x 10^k."""
    (bed,) = returns(dtype)
    plain = bed.problem

    def upper(x, y, data):
        return data[1] * plain.upper(x, y, data[0])

    def lower(x, y, data):
        return data[2] * plain.lower(x, y, data[0])

    problem = bilevel.Problem(upper, lower)
    last = 1 if options.smoke else 9 if dtype == jnp.float64 else 6
    rows = []
    for level, f, g in (("upper", 1, 0), ("lower", 0, 1), ("both", 1, 1), ("opposite", 1, -1)):
        several = []
        for k in range(-last, last + 1):
            factors = 10.0 ** (f * k), 10.0 ** (g * k)
            data = (bed.data, *(jnp.asarray(factor, dtype) for factor in factors))
            several.append(
                found(bed._replace(problem=problem, data=data, exact=factors[0] * bed.exact))
            )
        certified = sum(row["status"] == "CONVERGED" for row in several)
        rows.append(
            {
                "level": level,
                "k": f"-{last} to {last}",
                "certified": f"{certified} of {len(several)}",
                "least error": min(row["error"] for row in several),
                "largest error": max(row["error"] for row in several),
                "largest estimate": max(row["estimate"] for row in several),
            }
        )
    return rows
