"""The exact expectation over one move of all k agents, where a local kernel has R < L different
rows, or R independent draws.

Agents in states with equal rows move alike, so only the histogram of the R classes of rows matters:
P = B C with B [L, R] of zeros and ones and C [R, L]. States whose columns are proportional are
exchangeable: an agent that reaches their class is in each of them with a chance that does not
depend on where it came from (an attribute drawn afresh at each step), and P = B C with B = P summed
over classes. Either way K_P = K_B K_C passes through the C(k+R-1, R-1) histograms of R classes, in
non-negative sums: rounding is not amplified.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.subsample_q.data.histograms import enumerate_counts, graded_rank
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel


class Lumping(NamedTuple):
    """Classes int32 [..., L] of the local states of each kernel, their largest number, and whether
    rows (or columns) define them.
    """

    classes: np.ndarray
    num_classes: int
    by_rows: bool


def find_lumping(kernels: np.ndarray) -> Lumping | None:
    """The coarsest classes of equal rows, or of proportional columns, whichever are fewer; None
    where there are L of both.
    """
    L = kernels.shape[-1]
    tolerance = 8 * float(np.finfo(kernels.dtype).eps)
    flat = kernels.reshape(-1, L, L).astype(np.float64)
    totals = flat.sum(axis=1, keepdims=True)
    shapes = (flat / np.where(totals > 0, totals, 1)).transpose(0, 2, 1)
    found = []
    for by_rows, vectors in ((True, flat), (False, shapes)):
        classes = np.stack([_classes(one, tolerance) for one in vectors])
        found.append(Lumping(classes.reshape(kernels.shape[:-1]), int(classes.max()) + 1, by_rows))
    best = min(found, key=lambda lumping: lumping.num_classes)
    return best if best.num_classes < L else None


def _classes(vectors: np.ndarray, tolerance: float) -> np.ndarray:
    """Number of the first vector that equals each one, counted in order of appearance: int32
    [L].
    """
    equal = np.abs(vectors[:, None] - vectors[None]).max(axis=-1) <= tolerance
    return np.unique(equal.argmax(axis=1), return_inverse=True)[1].astype(np.int32)


class Lumped(NamedTuple):
    """One kernel, made ready. by rows: `outer` int32 [N] is the class histogram of each histogram;
    by columns: K_B [N, N_R].
    """

    outer: jax.Array
    inner: jax.Array  # K_C [N_R, N]


def prepare_lumped(
    kernel: jax.Array, classes: jax.Array, k: int, num_classes: int, by_rows: bool
) -> Lumped:
    """The operator of one kernel [L, L] for its classes [L]. A kernel that does not have them is
    averaged, which the solve's test shows.
    """
    member = jax.nn.one_hot(classes, num_classes, dtype=kernel.dtype)  # [L, R]
    if by_rows:
        size = jnp.maximum(jnp.sum(member, axis=0), 1)
        rows = jnp.matmul(member.T, kernel, precision="highest") / size[:, None]
        counts = jnp.asarray(enumerate_counts(k, kernel.shape[-1]))
        belongs = classes[:, None] == jnp.arange(num_classes - 1, dtype=jnp.int32)[None, :]
        return Lumped(
            graded_rank(jnp.matmul(counts, belongs.astype(jnp.int32)), k), dense_kernel(rows, k)
        )
    arrive = jnp.matmul(kernel, member, precision="highest")  # [L, R]
    total = jnp.sum(arrive, axis=0)
    shares = member.T * jnp.sum(kernel, axis=0)[None, :] / jnp.where(total > 0, total, 1)[:, None]
    return Lumped(dense_kernel(arrive, k), dense_kernel(shares, k))


def apply_lumped(operator: Lumped, values: Any, by_rows: bool) -> jax.Array:
    """E[W(h') | h] for W = values [C, N], as [N, C]."""
    inner = jnp.matmul(operator.inner, values.T, precision="highest")
    return (
        inner[operator.outer] if by_rows else jnp.matmul(operator.outer, inner, precision="highest")
    )
