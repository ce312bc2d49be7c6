"""Arguments of the public functions, checked and in one dtype."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac.gibbs._background import Background


class Problem(eqx.Module):
    """A Gibbs policy: scores, their temperature, and the budget."""

    z: jax.Array  # [M]
    temperature: jax.Array  # []
    costs: jax.Array | None  # [M] int32
    background: Background | None
    budget: int = eqx.field(static=True)
    exactly: bool = eqx.field(static=True)

    def cold(self) -> "Problem":
        """The same policy at temperature 1; NaN where the temperature is not positive. For use
        inside `jit`.
        """
        temperature = jnp.where(self.temperature > 0, self.temperature, jnp.nan)
        background = (
            None
            if self.background is None
            else self.background._replace(scores=self.background.scores / temperature)
        )
        return Problem(
            self.z / temperature,
            jnp.ones_like(temperature),
            self.costs,
            background,
            self.budget,
            self.exactly,
        )


def problem(
    z: Any,
    budget: Any,
    exactly: Any = False,
    costs: Any = None,
    background: Any = None,
    temperature: Any = 1.0,
) -> Problem:
    _checks.require(
        np.ndim(z) == 1,
        f"z must have shape [M], got {list(np.shape(z))}: use jax.vmap for several rows.",
    )
    z = _checks.real_array("z", z, ("M",))
    _checks.require(
        z.dtype in (jnp.float32, jnp.float64),
        f"z must be float32 or float64, got {z.dtype}: cast it with .astype.",
    )
    budget = _checks.static_integer("budget", budget, 0)
    _checks.require(
        isinstance(exactly, bool | np.bool_),
        f"exactly must be True or False, got {exactly!r}: it is static.",
    )
    temperature = _checks.real_scalar("temperature", temperature, z.dtype, 0, strict=True)
    if costs is not None:
        _checks.require(
            background is None,
            "costs and background cannot be combined: list the background's tools in z with their"
            " costs.",
        )
        costs = _checks.integer_array("costs", costs, z.shape)
        if _checks.is_concrete(costs):
            _checks.require(
                bool(np.all(np.asarray(costs) >= 0)),
                "costs must be >= 0: leave out tools of negative cost, or shift all costs.",
            )
    elif background is not None:
        background = _background(background, z.dtype)
    else:
        _checks.require(
            not exactly or budget <= z.shape[0],
            f"exactly=True needs budget <= M, got budget={budget} and M={z.shape[0]}.",
        )
    return Problem(z, temperature, costs, background, budget, bool(exactly))


def _background(background: Any, dtype: Any) -> Background:
    _checks.require(
        isinstance(background, tuple | list) and len(background) == 2,
        "background must be a pair (scores [C], counts [C]).",
    )
    scores = _checks.real_array("background scores", background[0], ("C",), dtype)
    counts = _checks.integer_array("background counts", background[1], scores.shape)
    if _checks.is_concrete(counts):
        _checks.require(bool(np.all(np.asarray(counts) >= 0)), "background counts must be >= 0.")
    return Background(scores, counts)


def width(p: Problem) -> int:
    """Static size of the largest feasible set: the budget, or what the cheapest tools allow; M
    where the costs are traced.
    """
    if p.costs is None:
        return p.budget
    if not _checks.is_concrete(p.costs):
        return p.z.shape[0]
    return int(np.sum(np.cumsum(np.sort(np.asarray(p.costs, np.int64))) <= p.budget))
