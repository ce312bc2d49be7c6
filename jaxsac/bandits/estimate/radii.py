"""How far the estimate of a cycle may be from the parameter: confidence radii that hold at all
cycles at once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsac._arguments import arguments, choice, real

KINDS = ("l2", "hkz", "coord")
BELOW_ONE = real(above=0, below=1)  # a probability of error


class DesignNumbers(NamedTuple):
    """What a radius needs of the exploration design V = Σ b b' over the basis, with Σ = V⁻¹;
    scalars.
    """

    trace: jax.Array  # of V
    least: jax.Array  # eigenvalue of V
    inverse_trace: jax.Array  # of Σ
    inverse_square: jax.Array  # trace of Σ²
    inverse_largest: jax.Array  # eigenvalue of Σ
    inverse_entry: jax.Array  # largest diagonal entry of Σ


def design_numbers(basis: jax.Array) -> DesignNumbers:
    gram = jnp.matmul(basis.T, basis, precision="highest")
    eigenvalues = jnp.linalg.eigvalsh(gram)
    return _numbers(eigenvalues, 1.0 / eigenvalues, jnp.max(jnp.diag(jnp.linalg.inv(gram))))


def diagonal_design_numbers(reach: jax.Array) -> DesignNumbers:
    """Those of the basis reach_i e_i, without the axes of length 0, of which nothing can be
    learned.
    """
    known = reach != 0
    squares = jnp.where(known, reach**2, jnp.inf)
    inverse = 1.0 / squares
    return _numbers(squares, inverse, jnp.max(inverse))._replace(trace=jnp.sum(reach**2))


def _numbers(eigenvalues, inverse, entry):
    return DesignNumbers(
        jnp.sum(eigenvalues),
        jnp.min(eigenvalues),
        jnp.sum(inverse),
        jnp.sum(inverse**2),
        jnp.max(inverse),
        entry,
    )


def radius_at(
    kind: str,
    numbers: DesignNumbers,
    dimension: int,
    cycle: jax.Array,
    sigma: jax.Array,
    delta: jax.Array,
) -> jax.Array:
    """The radius at `cycle`, a floating scalar ≥ 1; formulas in `error_radius`."""
    if kind in ("hkz", "local"):
        level = jnp.log(jnp.pi**2 * cycle**2 / (6.0 * delta))
        spread = (
            numbers.inverse_trace
            + 2.0 * jnp.sqrt(numbers.inverse_square * level)
            + 2.0 * numbers.inverse_largest * level
        )
        return sigma * jnp.sqrt(spread / cycle)
    if kind == "coord":
        return coordinate_radius(numbers.inverse_entry, dimension, cycle, sigma, delta)
    level = 2.0 * jnp.log(jnp.pi**2 * dimension * cycle**2 / (3.0 * delta))
    return sigma / numbers.least * jnp.sqrt(numbers.trace * level / cycle)


def coordinate_radius(entry: Any, dimension: int, cycle: Any, sigma: Any, delta: Any) -> Any:
    """That of coordinates with these diagonal entries of Σ."""
    level = 2.0 * jnp.log(jnp.pi**2 * dimension * cycle**2 / (3.0 * delta))
    return sigma * jnp.sqrt(entry * level / cycle)


@arguments(
    basis=real("m", "d"), cycle=real(low=1), sigma=real(low=0), delta=BELOW_ONE, kind=choice(*KINDS)
)
def error_radius(cycle, basis: jax.Array, *, sigma, delta, kind: str = "l2") -> jax.Array:
    """Radius eps_c such that all cycles c satisfy error(theta_c) ≤ eps_c together with probability
    at least 1 − delta.

    theta_c is the least squares estimate from c repetitions of the rows of `basis`, V = basis'
    basis, Σ = V⁻¹, and the noise is conditionally sigma-sub-Gaussian.

    * `cycle`: c ≥ 1.
    * `basis`: [m, d].
    * `sigma`: ≥ 0; `delta`: in (0, 1).
    * `kind`: "l2" for the l₂ error, the paper's (equation 9), very loose:
      (sigma / λ_min(V)) √(2 tr(V) log(π² d c² / (3 delta)) / c);
      "hkz" for the l₂ error, with t = log(π² c² / (6 delta)):
      sigma √((tr Σ + 2 √(tr(Σ²) t) + 2 ‖Σ‖ t) / c);
      "coord" for the largest error of a coordinate:
      sigma √(2 max_j Σ_jj log(π² d c² / (3 delta)) / c).

    Returns: eps_c, []; a NaN anywhere gives NaN.

    Source: arXiv 2605.10151, equation 9; Hsu, Kakade and Zhang (2012) for "hkz".
    """
    return radius_at(kind, design_numbers(basis), basis.shape[1], cycle, sigma, delta)
