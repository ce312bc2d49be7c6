"""From the arguments of the public functions to a checked problem."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac._checks import is_concrete, real_array, real_scalar, require
from jaxsac.designs import as_design
from jaxsac.group_lasso.problem.record import Problem, centre
from jaxsac.losses import Loss, resolve
from jaxsac.prox import Groups, Penalty


def make_problem(
    X: Any,
    y: Any,
    groups: Groups,
    lam: Any,
    loss: str | Loss,
    weights: Any,
    sample_weight: Any,
    offset: Any,
    intercept: bool,
    penalty: Penalty | None = None,
) -> Problem:
    """The problem as checked arrays; ValueError for what does not fit."""
    design = as_design(X)
    require(
        isinstance(groups, Groups),
        f"groups must be a jaxsac.Groups, got {type(groups).__name__}: use Groups.equal or from_labels.",
    )
    require(
        design.num_coefficients == groups.num_coefficients,
        f"groups partition {groups.num_coefficients} coefficients but X has {design.num_coefficients}: build them for X.",
    )
    shape, dtype = design.prediction_shape, design.dtype
    loss = resolve(loss)
    y = loss.target(y, shape, dtype)
    if isinstance(weights, str):
        require(
            weights == "sqrt_size",
            f"weights must be None, 'sqrt_size' or an array [G], got {weights!r}.",
        )
        weights = jnp.sqrt(groups.sizes.astype(dtype))
    all_one = weights is None
    filled = _filled_on_host if is_concrete(design, y) else jnp.full
    weights = (
        filled((groups.num_groups,), 1.0, dtype)
        if weights is None
        else _non_negative("weights", weights, (groups.num_groups,), dtype)
    )
    free_weights = not all_one and (
        not is_concrete(weights) or bool(np.any(np.asarray(weights) == 0))
    )
    sample_weight = (
        filled(shape[:1], 1.0, dtype)
        if sample_weight is None
        else _non_negative("sample_weight", sample_weight, shape[:1], dtype)
    )
    offset = (
        filled(shape, 0.0, dtype) if offset is None else real_array("offset", offset, shape, dtype)
    )
    lam = real_scalar("lam", lam, dtype, 0.0)
    free_lam = not is_concrete(lam) or float(lam) == 0
    lam = jnp.where(lam >= 0, lam, jnp.nan)
    loss = loss.for_data(y, offset, sample_weight)
    if intercept:
        design = centre(design, sample_weight)
    if penalty is not None:
        require(
            isinstance(penalty, Penalty),
            f"penalty must be a jaxsac.prox.Penalty, got {type(penalty).__name__}.",
        )
        penalty = penalty.checked(groups, dtype)
    return Problem(
        design,
        y,
        groups,
        lam,
        weights,
        sample_weight,
        offset,
        loss,
        bool(intercept),
        free_weights,
        free_lam,
        penalty,
    )


def _filled_on_host(shape: tuple[int, ...], value: float, dtype: Any) -> jax.Array:
    """`jnp.full` without a program, whose call takes four times as long; in a trace it would be a
    constant of that many numbers.
    """
    return jnp.asarray(np.full(shape, value, dtype))


def _non_negative(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    value_ = real_array(name, value, shape, dtype)
    if is_concrete(value_):
        require(not bool(np.any(np.asarray(value_) < 0)), f"{name} must be >= 0.")
    return jnp.where(value_ >= 0, value_, jnp.nan)
