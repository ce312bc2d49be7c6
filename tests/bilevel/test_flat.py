"""What `argmin` says of its value where the lower level is nearly flat, or free."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Status, bilevel

RATIOS = 10.0 ** -np.arange(2, 13)


def quadratics(turned, size, flat, rng):
    """y* = x; `flat` curvatures of `size` are the ratio, the others between .1 and 1."""
    curvatures = 10.0 ** rng.uniform(-1, 0, (4, len(RATIOS), size))
    curvatures[:, :, :flat] = RATIOS[:, None]
    turns = np.broadcast_to(np.eye(size), (*curvatures.shape, size))
    if turned:
        turns = np.linalg.qr(rng.normal(size=turns.shape))[0]
    return (turns * curvatures[..., None, :]) @ turns.swapaxes(-1, -2)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
def search(lower, x, y0, data):
    return bilevel.argmin(lower, y0, data).checked(x)


@pytest.mark.parametrize("size, flat", [(2, 1), pytest.param(40, 5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_no_value_is_certified_whose_error_is_beyond_its_estimate(dtype, size, flat):
    """Curvatures down to 1e-12 of the largest, along the axes, and along others as far as rounding
    in gradients lets a curvature be seen at all.
    """

    def lower(x, y, matrix):
        return 0.5 * (y - x) @ (matrix @ (y - x))

    rng = np.random.default_rng(0)
    for turned in (False, True):
        matrix = quadratics(turned, size, flat, rng).reshape(-1, size, size).astype(dtype)
        x, y0 = rng.normal(size=(2, len(matrix), size)).astype(dtype)
        y0 *= np.resize([0.0, 1.0, 1e-3], len(matrix))[:, None]
        found = search(lower, x, y0, matrix)
        error = np.linalg.norm(np.asarray(found.value - x), axis=1)
        estimate = np.asarray(found.stats["error"] + found.stats["rounding"])
        ratio = np.tile(RATIOS, 4)
        seen = ratio > 4 * np.finfo(dtype).eps if turned else ratio > 0
        sure = np.asarray(found.status == Status.CONVERGED)
        assert np.all((error <= 10 * estimate)[sure & seen])
        assert sure[ratio > (1e-8 if dtype == jnp.float64 else 1e-2)].all()


@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_policies_as_logits_have_certified_values(dtype):
    """A constant in a row changes nothing: it is free, and no error."""

    def soft(x, y, tau):
        log_probs = jax.nn.log_softmax(y, axis=1)
        return -jnp.mean(jnp.sum(jnp.exp(log_probs) * (x - tau * log_probs), axis=1))

    rng = np.random.default_rng(1)
    x, y0 = rng.normal(size=(2, 60, 5, 4)).astype(dtype)
    y0 *= np.resize([0.0, 1.0], 60)[:, None, None]
    tau = np.repeat([1.0, 2.0], 30).astype(dtype)
    found = search(soft, x, y0, tau)
    sure = np.asarray(found.status == Status.CONVERGED)
    assert sure.sum() >= 57
    exact = x / tau[:, None, None]
    error = np.asarray(found.value) - exact
    error = np.linalg.norm(error - error.mean(axis=2, keepdims=True), axis=(1, 2))
    estimate = np.asarray(found.stats["error"] + found.stats["rounding"])
    assert np.all((error <= 10 * estimate)[sure])
