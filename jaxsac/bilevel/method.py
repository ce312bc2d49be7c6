"""How a bilevel problem is solved, and what a run continues from."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxsac import _checks
from jaxsac._arguments import arguments, choice, either, flag, function, real, record, size
from jaxsac.bilevel.paired import INNER, PairedOptimizer
from jaxsac.bilevel.problem import Tree, dtype_of, size_of
from jaxsac.bilevel.schemes import (
    DIFFERENCES,
    SCHEMES,
    Scheme,
    balanced_factor,
    positive,
    relative_sigma,
)
from jaxsac.solution import register

METHOD = {
    "difference": choice(*DIFFERENCES),
    "inner": INNER,
    "outer": record(optax.GradientTransformation),
    "inner_steps": size(1),
    "variance_reduction": flag(),
}
SIGMA = either(
    real(above=0), choice("relative"), function("step number -> σ")
)  # the size of the perturbation, or a rule for it
MOMENTUM = real(above=0, high=1)


@arguments(**METHOD)
class Method(eqx.Module):
    """How a bilevel problem is solved; static, so build it once and reuse it.

    * `difference`: "central_linear", "forward" (the paper's method, which is also for lower levels
      of several minimisers and for `variance_reduction`), "central" or "one_sided".
    * `inner`: a linear optax optimiser, or a `PairedOptimizer`.
    * `outer`: any optax optimiser.
    * `inner_steps`: K ≥ 1, the inner steps to an outer one.
    * `variance_reduction`: recursive momentum (STORM, Cutkosky & Orabona 2019) on the directions of
      z, d and x.
    """

    difference: str = eqx.field(static=True, default="central_linear")
    inner: PairedOptimizer | optax.GradientTransformation = eqx.field(
        static=True, default=optax.sgd(0.1)
    )
    outer: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-2))
    inner_steps: int = eqx.field(static=True, default=1)
    variance_reduction: bool = eqx.field(static=True, default=False)


DEFAULT = Method()


class Sigma(eqx.Module):
    """The size of the perturbation: a number, or a rule for it."""

    number: jax.Array  # []; 0 where there is a rule
    rule: Any = eqx.field(static=True)  # None, "relative", or a schedule: step number -> number

    @staticmethod
    def of(sigma: Any, dtype: Any) -> "Sigma":
        if callable(sigma) or isinstance(sigma, str):
            return Sigma(jnp.zeros((), dtype), sigma)
        return Sigma(positive(sigma, dtype), None)

    def at(self, scheme: Scheme, state: "State") -> jax.Array:
        dtype = dtype_of(state.x)
        if self.rule is None:
            return self.number
        if callable(self.rule):
            return positive(self.rule(state.num_steps), dtype)
        whole = size_of(state.z)
        return relative_sigma(balanced_factor(scheme, dtype), whole, scheme.first(state.d))


@register
class Recursion(NamedTuple):
    """Where the variance-reduced estimates stand: their values, and the points at which the last
    batch was seen.
    """

    inner: tuple[Tree, Tree]
    inner_point: tuple[Tree, Tree, Tree]
    outer: Tree
    outer_point: tuple[Tree, Tree, Tree]


@register
class State(NamedTuple):
    """What a run continues from: the upper variable, the lower-level copies, and the optimisers."""

    x: Tree  # the upper variable, shaped like x0
    z: Tree  # the lower point, shaped like y0
    d: Tree  # the direction, like y0 (one_sided: two on a leading axis); the copies are at z + σ d
    inner: tuple[jax.Array, ...]  # the arrays of the inner optimiser's state
    outer: tuple[jax.Array, ...]  # those of the outer optimiser's
    sigma: jax.Array  # [] of the last step
    num_steps: jax.Array  # [] int32: outer steps so far
    scale: jax.Array  # [] the norm of the first hypergradient that `solve` trusted; 0: none yet
    key: jax.Array | None = None  # a random key, where `solve` draws batches
    recursion: Recursion | None = None  # estimates, where variance is reduced

    @property
    def dtype(self) -> Any:
        return dtype_of(self.x)


def scheme_of(method: Method) -> Scheme:
    _checks.require(
        not (method.variance_reduction and method.difference == "central_linear"),
        'variance_reduction does not go with difference="central_linear": use "forward",'
        ' "central" or "one_sided".',
    )
    return SCHEMES[method.difference]
