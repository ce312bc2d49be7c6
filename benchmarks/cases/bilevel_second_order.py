"""Comparators with second-order products, in the loop of `bilevel.step`: SOBA, and implicit
differentiation by conjugate gradients at every outer step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg

from jaxsac import bilevel


def loop(
    problem: bilevel.Problem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    inner_steps: int,
    linear_steps: int | None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(init, step), where init(x, y) -> state and step(state, data) -> state; x is state[0].

        soba:      z and d move together, d along f_y + D²_yy g d
        implicit:  z moves, then conjugate gradients solve for d, `linear_steps` of them

    `linear_steps=None` is SOBA.
    """

    def lower_gradient(argument, x, y, data):
        return jax.grad(problem.lower, argument)(x, y, data)

    def product(argument, x, z, d, data):
        return jax.jvp(lambda y: lower_gradient(argument, x, y, data), (z,), (d,))[1]

    def init(x, y):
        d = jnp.zeros_like(y)
        return x, y, d, inner.init(y), inner.init(d), outer.init(x)

    def step(state, data):
        x, z, d, of_z, of_d, of_x = state
        for _ in range(inner_steps):
            change, of_z = inner.update(lower_gradient(1, x, z, data), of_z, z)
            if linear_steps is None:
                pull = jax.grad(problem.upper, 1)(x, z, data)
                turn, of_d = inner.update(pull + product(1, x, z, d, data), of_d, d)
                d = d + turn
            z = z + change
        upper_x, pull = jax.grad(problem.upper, (0, 1))(x, z, data)
        if linear_steps is not None:
            d = cg(lambda v: product(1, x, z, v, data), -pull, d, maxiter=linear_steps)[0]
        change, of_x = outer.update(upper_x + product(0, x, z, d, data), of_x, x)
        x = x + change
        x = x if problem.project_x is None else problem.project_x(x)
        return x, z, d, of_z, of_d, of_x

    return init, step
