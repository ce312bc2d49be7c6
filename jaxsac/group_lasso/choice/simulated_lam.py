"""The choice of lam by simulation: what the noise alone would pull."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsac._arguments import arguments, key as key_of, real, record, size
from jaxsac.group_lasso.problem.free import fit_null, lam_max_of, largest_pull, without_free
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, recentre
from jaxsac.group_lasso.problem.record import PROBLEM, LinearModel, Problem
from jaxsac.solution import Solution

_BATCH = 32  # draws at a time: products of X with a matrix, in bounded memory


@arguments(
    key=key_of(),
    problem=PROBLEM,
    solution=record(Solution, LinearModel),
    level=real(above=0, below=1),
    factor=real(above=0),
    num_draws=size(1),
)
def simulated_lam(
    key: jax.Array,
    problem: Problem,
    solution: Solution | LinearModel | None = None,
    *,
    level: Any = 0.05,
    factor: Any = 1.1,
    num_draws: int = 500,
) -> jax.Array:
    """A lam that noise alone exceeds with probability `level`: `factor` times the (1 − level)
    quantile of max_g ‖X_g' ρ‖ / w_g.

    With loss="sqrt" ρ is that of the null model for targets ε_t / c_t^½, ε ~ N(0, I). Its law
    depends on neither y nor the noise level, so that this lam is right whatever that is (Belloni et
    al. 2011; Bunea, Lederer & She 2014).

    With other losses it is ρ_t ε_t, ρ the residual −∇F of a pilot and ε ~ N(0, I) one for each
    record, less its part along what is unpenalised (multiplier bootstrap).

    * `key`: consumed.
    * `solution`: the pilot: one of this problem, or its value. None is the null model, whose
      residual holds the signal as well and gives too large a lam: solve, and pass the solution to
      repeat.
    * `level`: in (0, 1), a probability.
    * `num_draws`: of the noise.

    Returns: [], in the units of lam.

    Raises: ValueError for the solution of a problem with another loss or intercept.

    Source: Chernozhukov et al. (2013).
    """
    at_zero, pilot = problem.at(0.0), None
    if solution is not None:
        pilot = recentre(at_zero, problem.coefficients(solution))
    return factor * jnp.quantile(_pulls(key, at_zero, pilot, num_draws=num_draws), 1.0 - level)


@functools.partial(jax.jit, static_argnames="num_draws")
def _pulls(
    key: jax.Array, problem: Objective, pilot: Coefficients | None, *, num_draws: int
) -> jax.Array:
    problem, pilot = lax.stop_gradient((problem, pilot))
    keys = jax.random.split(key, num_draws)
    shape, dtype = problem.offset.shape, problem.offset.dtype

    if not problem.loss.separable:
        positive = problem.sample_weight > 0
        spread = jnp.where(
            positive, 1.0 / jnp.sqrt(jnp.where(positive, problem.sample_weight, 1.0)), 0.0
        )
        zeros = jnp.zeros(shape, dtype)

        def of_noise(key):
            noise = jax.random.normal(key, shape, dtype) * spread.reshape(
                (-1,) + (1,) * (len(shape) - 1)
            )
            loss = problem.loss.for_data(noise, zeros, problem.sample_weight)
            return lam_max_of(dataclasses.replace(problem, y=noise, offset=zeros, loss=loss))

        return lax.map(of_noise, keys, batch_size=_BATCH)

    columns = jnp.sqrt(problem.design.column_squares(problem.sample_weight))
    predictions = fit_null(problem, columns)[1] if pilot is None else problem.predict(pilot)
    residual = problem.residual(predictions)
    free = problem.unpenalised if problem.most_free else None

    def of_signs(key):
        noise = jax.random.normal(key, shape[:1], dtype).reshape((-1,) + (1,) * (len(shape) - 1))
        left = without_free(problem, predictions, noise * residual, free)
        return largest_pull(problem, problem.design.adjoint(left))

    return lax.map(of_signs, keys, batch_size=_BATCH)
