"""optimistix: implicit differentiation of its BFGS."""

import functools

import jax
import optimistix
from bilevel.implicit import answer_with


def inner_solver(lower):
    solver = optimistix.BFGS(rtol=1e-4, atol=1e-4)
    return lambda x, y: (
        optimistix.minimise(
            lower, solver, jax.lax.stop_gradient(y), x, max_steps=200, throw=False
        ).value
    )


answer = functools.partial(answer_with, inner_solver)
