"""Sums that a compiler has been seen to get wrong, computed and compared: jaxlib 0.10.2 fuses
products of sums on CPUs into kernels that are wrong above about 2^15 numbers (jax-ml/jax#39103).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Sum = Callable[..., Any]  # of xp (jax.numpy or NumPy), u, v and q

# name: (shape of u and of v, shape of q, the sum)
_SUMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Sum]] = {
    "sum(u * sum(q * u)) with one q": (
        (20_000, 3),
        (3, 3),
        lambda xp, u, v, q: xp.sum(u * xp.sum(q[None] * u[:, None, :], 2), 1),
    ),
    "sum(u * sum(q * u)) with a q a row": (
        (20_000, 3),
        (20_000, 3, 3),
        lambda xp, u, v, q: xp.sum(u * xp.sum(q * u[:, None, :], 2), 1),
    ),
    "sum(v * sum(q * u)) of blocks": (
        (400, 100, 3),
        (100, 3, 3),
        lambda xp, u, v, q: xp.sum(v * xp.sum(q[None] * u[:, :, None, :], 3), 2),
    ),
    "sum(q * u) of blocks": (
        (400, 100, 3),
        (100, 3, 3),
        lambda xp, u, v, q: xp.sum(q[None] * u[:, :, None, :], 3),
    ),
    "sum(u * v) of rows": ((50_000, 3), (3, 3), lambda xp, u, v, q: xp.sum(u * v, 1)),
    "sum(u ** 2) of blocks": ((400, 200, 3), (3, 3), lambda xp, u, v, q: xp.sum(u**2, 2)),
    "sum((u @ q) ** 2)": ((40_000, 3), (3,), lambda xp, u, v, q: xp.sum((u @ q) ** 2)),
    "sum(sum(q * u) ** 2)": (
        (400, 200, 3),
        (200, 3),
        lambda xp, u, v, q: xp.sum(xp.sum(q[None] * u, 2) ** 2, 1),
    ),
}


def wrong_sums(scale: float = 1.0) -> Iterator[str]:
    """The sums that the default device gets wrong, in float32 and, where it is on, float64; none
    should be. `scale` multiplies the number of rows.
    """
    generator = np.random.default_rng(0)
    for name, (shape, other, total) in _SUMS.items():
        rows = int(shape[0] * scale)
        other = (rows, *other[1:]) if other[0] == shape[0] else other
        u, v, q = (generator.normal(size=size) for size in ((rows, *shape[1:]),) * 2 + (other,))
        expected = total(np, u, v, q)
        for dtype in (np.float32, np.float64)[: 1 + jax.config.read("jax_enable_x64")]:
            given = [jnp.asarray(array, dtype) for array in (u, v, q)]
            got = jax.jit(total, static_argnums=0)(jnp, *given)
            error = np.abs(np.asarray(got, np.float64) - expected) / (1 + np.abs(expected))
            if not error.max() < np.sqrt(np.finfo(dtype).eps):
                yield f"{name}, {np.dtype(dtype).name}"
