"""jaxopt: implicit differentiation of its L-BFGS."""

import functools

import jaxopt
from bilevel.implicit import answer_with


def inner_solver(lower):
    solver = jaxopt.LBFGS(lower, maxiter=50, tol=1e-4, implicit_diff=True)
    return lambda x, y: solver.run(y, x).params


answer = functools.partial(answer_with, inner_solver)
