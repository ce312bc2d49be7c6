"""Bilevel problems with known answers."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsac import bilevel
from jaxsac.problems import bilevel as problems


class Quadratic(NamedTuple):
    """lower = ½ y'Ay + a'y + x'Cy,  upper = ½ y'Fy + k'y + ½ x'Hx + h'x."""

    A: Any
    a: Any
    C: Any
    F: Any
    k: Any
    H: Any
    h: Any


def quadratic_lower(x, y, q):
    return 0.5 * y @ q.A @ y + q.a @ y + x @ q.C @ y


def quadratic_upper(x, y, q):
    return 0.5 * y @ q.F @ y + q.k @ y + 0.5 * x @ q.H @ x + q.h @ x


QUADRATIC = bilevel.Problem(quadratic_upper, quadratic_lower)


def quadratic(seed, dtype, num_x=3, num_y=4):
    rng = np.random.default_rng(seed)

    def definite(n):
        root = rng.normal(size=(n, n))
        return root @ root.T / n + 0.5 * np.eye(n)

    parts = (
        definite(num_y),
        rng.normal(size=num_y),
        rng.normal(size=(num_x, num_y)),
        definite(num_y),
    )
    parts += rng.normal(size=num_y), definite(num_x), rng.normal(size=num_x)
    return Quadratic(*(jnp.asarray(part, dtype) for part in parts))


def quadratic_x(q):
    """The bilevel optimum: minimise ½ y'Fy + k'y + ½ x'Hx + h'x over y = -A⁻¹(a + C'x)."""
    response = np.linalg.solve(q.A, np.asarray(q.C).T)  # y = -(A⁻¹a) - response x
    offset = np.linalg.solve(q.A, q.a)
    hessian = np.asarray(q.H) + response.T @ q.F @ response
    gradient = np.asarray(q.h) + response.T @ (np.asarray(q.F) @ offset - q.k)
    return np.linalg.solve(hessian, -gradient)


def penalty_gradients(q, x, sigma):
    """What each difference is for a quadratic, in closed form at any sigma."""

    def at(s):
        y = np.linalg.solve(q.A + s * q.F, -(q.a + q.C.T @ x + s * q.k))
        return q.C @ y + s * (q.H @ x + q.h), y

    here, z = at(0.0)
    (near, _), (far, _), (minus, _) = at(sigma), at(2 * sigma), at(-sigma)
    exact = q.H @ x + q.h - q.C @ np.linalg.solve(q.A, q.F @ z + q.k)
    return {
        "forward": (near - here) / sigma,
        "central": (near - minus) / (2 * sigma),
        "one_sided": (-3 * here + 4 * near - far) / (2 * sigma),
        "central_linear": exact,
    }


SMOOTH = bilevel.Problem(problems.smooth_upper, problems.smooth_lower)


def scalar_upper(x, y):
    return 0.5 * (y - 1) ** 2 + 0.5 * x**2


def scalar_lower(x, y):
    return 0.5 * (y - x) ** 2


SCALAR = bilevel.Problem(scalar_upper, scalar_lower)  # answer: x = y = ½, value ¼
