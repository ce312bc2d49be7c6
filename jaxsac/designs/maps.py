"""Designs as records of two products, a linear map and its transpose."""

from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxsac import _arguments, _checks, _loops
from jaxsac._arguments import arguments, choice, integer, real, size
from jaxsac.prox import vector_norm
from jaxsac.solution import register


class Design(Protocol):
    """What a solver needs of a linear map from coefficients [p] to predictions: the sizes of its
    two sides, the map, and its transpose.
    """

    @property
    def num_coefficients(self) -> int: ...

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        """(T,) or (T, M)."""
        ...

    @property
    def dtype(self) -> Any: ...

    def predict(self, coef: jax.Array) -> jax.Array:
        """X b, of `prediction_shape`."""
        ...

    def adjoint(self, residual: jax.Array) -> jax.Array:
        """X' r, [p]."""
        ...

    def column_squares(self, sample_weight: jax.Array) -> jax.Array:
        """Σ_t c_t x_tj² for each column of what it stores, by which rounding errors are bounded."""
        ...


@register
@arguments(matrix=real("T", "p"))
class Dense(eqx.Module):
    """The design of a matrix, predict(b) = X b with X [T, p]."""

    matrix: jax.Array  # [T, p]

    @property
    def num_coefficients(self) -> int:
        return self.matrix.shape[1]

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[0],)

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def predict(self, coef: jax.Array) -> jax.Array:
        """X b, [T]."""
        return jnp.dot(self.matrix, coef, precision="highest")

    def adjoint(self, residual: jax.Array) -> jax.Array:
        """X' r, [p], written r X: the other order copies the transpose on CPUs."""
        return jnp.dot(residual, self.matrix, precision="highest")

    def column_squares(self, sample_weight: jax.Array) -> jax.Array:
        # a reduction, so that X² is not stored
        return jnp.sum(sample_weight[:, None] * self.matrix * self.matrix, axis=0)


@register
@arguments(actions=integer("T", "W"), features=real("T", "q", own=True), num_actions=size(1))
class BudgetedChoice(eqx.Module):
    """predict(b)_t = Σ_{j ∈ a_t} <θ_j, ψ_t>: the score of the set chosen in each record, by gather
    and scatter, O(T W q).

    b [M q] is θ [M, q] row by row. The T × Mq matrix is never built. An action that a record lists
    twice counts twice.
    """

    actions: jax.Array  # a [T, W] int32, padded with −1
    features: jax.Array  # ψ [T, q]
    num_actions: int = eqx.field(static=True)  # M

    def __check_init__(self) -> None:
        _require_features(self.features)
        _checks.require_known(
            lambda actions: actions < self.num_actions,
            f"actions must be below num_actions = {self.num_actions}: pad with -1.",
            self.actions,
        )

    @property
    def num_coefficients(self) -> int:
        return self.num_actions * self.features.shape[1]

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        return (self.features.shape[0],)

    @property
    def dtype(self) -> Any:
        return self.features.dtype

    @property
    def _rows(self) -> jax.Array:
        # out of range: read as 0, not written
        return jnp.where(self.actions < 0, self.num_actions, self.actions)

    def predict(self, coef: jax.Array) -> jax.Array:
        """The scores of the chosen sets, [T]."""
        chosen = coef.reshape(self.num_actions, -1).at[self._rows].get(mode="fill", fill_value=0)
        return jnp.einsum("twq,tq->t", chosen, self.features, precision="highest")

    def adjoint(self, residual: jax.Array) -> jax.Array:
        """Σ_{t : j ∈ a_t} r_t ψ_t for every action j, [M q]."""
        return self._scatter(residual[:, None] * self.features)

    def column_squares(self, sample_weight: jax.Array) -> jax.Array:
        return self._scatter(sample_weight[:, None] * self.features**2)

    def _scatter(self, pulled: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(pulled[:, None, :], (*self.actions.shape, self.features.shape[1]))
        sums = (
            jnp.zeros((self.num_actions, self.features.shape[1]), pulled.dtype)
            .at[self._rows]
            .add(rows, mode="drop")
        )
        return sums.reshape(-1)


@register
@arguments(features=real("T", "q", own=True), num_outputs=size(1), by=choice("output", "feature"))
class MultiOutput(eqx.Module):
    """predict(b) = Ψ Θ' [T, M]: M outputs that share the features Ψ [T, q]; the matrix Ψ ⊗ I is
    never built.

    b [M q] is Θ [M, q] row by row, so that an output's coefficients are consecutive, or with
    `by="feature"` Θ' [q, M] row by row, so that a feature's coefficients are.
    """

    features: jax.Array  # Ψ [T, q]
    num_outputs: int = eqx.field(static=True)  # M
    by: str = eqx.field(static=True, default="output")  # or "feature"

    def __check_init__(self) -> None:
        _require_features(self.features)

    @property
    def num_coefficients(self) -> int:
        return self.num_outputs * self.features.shape[1]

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        return (self.features.shape[0], self.num_outputs)

    @property
    def dtype(self) -> Any:
        return self.features.dtype

    def predict(self, coef: jax.Array) -> jax.Array:
        """Ψ Θ', [T, M]."""
        if self.by == "output":
            return jnp.einsum(
                "tq,mq->tm", self.features, coef.reshape(self.num_outputs, -1), precision="highest"
            )
        return jnp.dot(self.features, coef.reshape(-1, self.num_outputs), precision="highest")

    def adjoint(self, residual: jax.Array) -> jax.Array:
        """R' Ψ for R [T, M], [M q]."""
        pulled = jnp.dot(residual.T, self.features, precision="highest")
        return (pulled if self.by == "output" else pulled.T).reshape(-1)

    def column_squares(self, sample_weight: jax.Array) -> jax.Array:
        squares = jnp.sum(sample_weight[:, None] * self.features**2, axis=0)
        return (
            jnp.tile(squares, self.num_outputs)
            if self.by == "output"
            else jnp.repeat(squares, self.num_outputs)
        )


@register
@arguments(design=_arguments.design(), shares=real("T"))
class Centred(eqx.Module):
    """Another design minus its weighted mean over samples: what remains of it beside a free
    intercept, predict(b) = X b − Σ_s shares_s (X b)_s, for each output.
    """

    design: Design  # X
    shares: jax.Array  # [T] ≥ 0, and they sum to one

    @property
    def num_coefficients(self) -> int:
        return self.design.num_coefficients

    @property
    def prediction_shape(self) -> tuple[int, ...]:
        return self.design.prediction_shape

    @property
    def dtype(self) -> Any:
        return self.design.dtype

    def mean(self, predictions: jax.Array) -> jax.Array:
        """The weighted mean over samples, [] or [M]."""
        return jnp.tensordot(self.shares, predictions, axes=1, precision="highest")

    def predict(self, coef: jax.Array) -> jax.Array:
        predictions = self.design.predict(coef)
        return predictions - jnp.broadcast_to(self.mean(predictions), predictions.shape)

    def adjoint(self, residual: jax.Array) -> jax.Array:
        shares = self.shares.reshape((-1,) + (1,) * (residual.ndim - 1))
        return self.design.adjoint(residual - shares * jnp.sum(residual, axis=0, keepdims=True))

    def column_squares(self, sample_weight: jax.Array) -> jax.Array:
        return self.design.column_squares(sample_weight)


def _require_features(features: jax.Array) -> None:
    _checks.require(
        features.size > 0,
        f"features must have at least one row and one column, got shape {list(features.shape)}.",
    )


@arguments(X=_arguments.design())
def as_design(X: Any) -> Design:
    """`X` itself if it is a design, else the design of the matrix X [T, p]."""
    return X if hasattr(X, "adjoint") else Dense(X)


def largest_eigenvalue(
    matvec: Callable[[jax.Array], jax.Array], size: int, dtype: Any, num_steps: int = 15
) -> jax.Array:
    """The largest eigenvalue of a symmetric positive semi-definite operator on [size], by power
    iteration from a fixed irregular start.

    The result is a lower bound, usually within a few per cent: take it with a margin and check it
    as you go.
    """
    # irregular enough, and far cheaper to compile than a generator
    start = jnp.cos(1.0 + lax.iota(jnp.int32, size).astype(dtype) ** 2)

    def step(_, carry):
        vector, _ = carry
        norm = vector_norm(vector)
        image = matvec(vector / jnp.where(norm == 0, 1.0, norm))
        return image, vector_norm(image)

    return _loops.fori_loop(0, num_steps, step, (start, jnp.zeros((), dtype)))[1]


def squared_norm(design: Design, sample_weight: jax.Array, num_steps: int = 15) -> jax.Array:
    """‖diag(c)^½ X‖₂² of a design, c = `sample_weight` [T] ≥ 0, as a lower bound by power
    iteration; see `largest_eigenvalue`.
    """
    design = _of_one_output(design)

    def matvec(vector):
        predictions = design.predict(vector)
        return design.adjoint(
            predictions * sample_weight.reshape((-1,) + (1,) * (predictions.ndim - 1))
        )

    return largest_eigenvalue(matvec, design.num_coefficients, design.dtype, num_steps)


def _of_one_output(design: Design) -> Design:
    """A design of one output with the same norm: ‖Ψ ⊗ I‖ = ‖Ψ‖."""
    if isinstance(design, Centred):
        return Centred(_of_one_output(design.design), design.shares)
    return Dense(design.features) if isinstance(design, MultiOutput) else design
