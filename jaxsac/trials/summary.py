"""Statistics over trials."""

import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, real
from jaxsac.solution import Hashable, register

_TREE = anything("a tree of the results")


@register
@arguments(mean=_TREE, standard_error=_TREE, quantiles=_TREE, num_nonfinite=_TREE)
class Summary(Hashable):
    """Statistics over trials; each field has the tree of the results."""

    mean: Any  # [...] of the finite values
    standard_error: Any  # [...] deviation / √(number of finite values); NaN for fewer than 2
    quantiles: Any  # [number of quantiles, ...] of the finite values; NaN when there are none
    # [...] int32, how many trials were NaN or infinite there and are left out of all of the above.
    # Where it is not 0 the summary speaks for the surviving trials only: look at the others before
    # trusting it.
    num_nonfinite: Any  # [...] int32

    @arguments(confidence=real(above=0, below=1))
    def band(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """(lower, upper): the normal confidence band of the mean, mean ± z standard_error with
        P(|N(0, 1)| ≤ z) = `confidence`.
        """
        z = statistics.NormalDist().inv_cdf((1 + float(confidence)) / 2)
        ends = [
            jax.tree.map(lambda m, e, sign=sign: m + sign * z * e, self.mean, self.standard_error)
            for sign in (-1, 1)
        ]
        return ends[0], ends[1]


@arguments(
    results=anything("a tree of arrays [num_trials, ...]"), quantiles=real("k", low=0, high=1)
)
def summarise(
    results: Any, *, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
) -> Summary:
    """Summarise a pytree of trial results over the leading axis of every leaf: mean, standard
    error, quantiles, number of non-finite.

        mean = Σ_i x_i / n,   standard_error = √(Σ_i (x_i − mean)² / (n − 1) / n)

    over the n finite values. Runs under `jit`.

    * `results`: leaves [num_trials, ...] of any real dtype; integers and booleans count as default
      floats, so that the mean of a flag is its rate.
    * `quantiles`: within [0, 1]; they interpolate linearly.

    Raises: ValueError for leaves without a common trial axis, and for quantiles outside [0, 1].
    """
    leaves = jax.tree.leaves(results)
    _checks.require(
        all(jnp.ndim(leaf) > 0 for leaf in leaves),
        "results must have a leading trial axis in every leaf, as run_trials gives them.",
    )
    sizes = {jnp.shape(leaf)[0] for leaf in leaves}
    _checks.require(
        len(sizes) <= 1 and 0 not in sizes,
        f"results must have one common number of trials >= 1 in all leaves, got {sorted(sizes)}.",
    )
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        _checks.require(
            dtype == jnp.bool_
            or (
                jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
            ),
            f"results must hold real numbers, got a leaf of {dtype}: select the numbers before"
            " summarising.",
        )
    return _summarise(results, quantiles)


@jax.jit
def _summarise(results: Any, levels: jax.Array) -> Summary:
    parts = [_summarise_leaf(leaf, levels) for leaf in jax.tree.leaves(results)]
    structure = jax.tree.structure(results)
    columns = zip(*map(jax.tree.leaves, parts), strict=True) if parts else [()] * 4
    return Summary(*map(structure.unflatten, columns))


def _summarise_leaf(leaf: jax.Array, levels: jax.Array) -> Summary:
    values = jnp.asarray(leaf)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    finite = jnp.isfinite(values)
    count = finite.sum(0, keepdims=True).astype(values.dtype)
    # Divided before they are summed: a sum of large values could overflow.
    mean = jnp.where(count > 0, jnp.where(finite, values / count, 0).sum(0, keepdims=True), jnp.nan)
    deviation = jnp.where(finite, values - mean, 0)
    # squares of what is far from 1 leave the range of float32
    scale = jnp.abs(deviation).max(0, keepdims=True)
    relative = deviation / jnp.where(scale > 0, scale, 1)
    variance = (relative**2).sum(0, keepdims=True) / jnp.maximum(count - 1, 1)
    return Summary(
        mean=mean[0],
        standard_error=jnp.where(
            count > 1, scale * jnp.sqrt(variance / jnp.maximum(count, 1)), jnp.nan
        )[0],
        quantiles=jnp.nanquantile(
            jnp.where(finite, values, jnp.nan), levels.astype(values.dtype), axis=0
        ),
        num_nonfinite=(~finite).sum(0, dtype=jnp.int32),
    )
