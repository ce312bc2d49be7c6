"""What a bilevel problem is, and its first-order oracle: gradients of two functions, nothing
else.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _loops
from jaxsac._arguments import anything, arguments, flag, function, variables
from jaxsac._arguments.kind import computed

Tree = Any


@arguments(
    upper=function("(x, y) or (x, y, data) -> scalar"),
    lower=function("(x, y) or (x, y, data) -> scalar"),
    project_x=function("x -> x"),
    prox_y=function("(x, y, rate) -> y"),
    nonsmooth=function("(x, y) or (x, y, data) -> scalar"),
    lower_difference=function("(x, y, step) or (x, y, step, data) -> changes of (x, y)"),
    allow_jvp=flag(),
    batch_copies=flag(),
)
class Problem(eqx.Module):
    """A bilevel problem: minimise upper(x, y*(x)) over x, where y*(x) minimises lower(x, y) over y.

    * `upper`, `lower`: scalar functions (x, y), or (x, y, batch) when data are given to the solver.
      x and y are pytrees of floating arrays; equinox modules may carry functions beside their
      arrays, and a Python number beside arrays is a constant: `jnp.asarray(0.0)` is a variable.
      When the lower level has several minimisers, the penalty methods choose the one with the least
      upper value (optimistic selection).
    * `project_x`: Euclidean projection of x on a closed convex set, applied after every outer step.
    * `prox_y`: (x, y, rate) -> arg min_u nonsmooth(x, u) + ‖u − y‖² / (2 rate), the proximal
      operator of what the lower level has beside the smooth `lower`; for a constraint on y the
      projection, which ignores x and rate. All copies take the same proximal steps; with plain SGD
      inside every point is one of their results, with momentum only the limit is.
    * `nonsmooth`: the term that `prox_y` belongs to, with the arguments of `lower`; only its value
      and its gradient in x are used. None: zero, or a constraint.
    * `lower_difference`: (x, y, step) or (x, y, step, batch) -> the change of the lower level's
      gradients in (x, y) when y moves by `step`, for lower levels that know a way without
      cancellation. By default the two gradients are subtracted.
    * `allow_jvp`: use the midpoint rule, a product with the lower level's Hessian, in place of that
      subtraction. It is free of cancellation, exact for quadratics, and the only second-order
      product that the penalty methods can be asked to use.
    * `batch_copies`: the lower level's copies go through its gradient as one batch, by `jax.vmap`.
      False: one after another, for functions that cannot be batched (callbacks), or whose branches
      or memory make a batch dear.

    The functions are static: build a problem once, and pass what changes as x, y or data.
    """

    upper: Callable[..., Any] = eqx.field(static=True)
    lower: Callable[..., Any] = eqx.field(static=True)
    project_x: Callable[[Tree], Tree] | None = eqx.field(static=True, default=None)
    prox_y: Callable[[Tree, Tree, jax.Array], Tree] | None = eqx.field(static=True, default=None)
    nonsmooth: Callable[..., Any] | None = eqx.field(static=True, default=None)
    lower_difference: Callable[..., tuple[Tree, Tree]] | None = eqx.field(static=True, default=None)
    allow_jvp: bool = eqx.field(static=True, default=False)
    batch_copies: bool = eqx.field(static=True, default=True)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Constant:
    """A leaf that is no number, such as the activation of an equinox network: part of the tree's
    structure inside the solvers.
    """

    value: Any


@jax.custom_jvp
def undifferentiated(tree: Tree) -> Tree:
    """`tree`; an error where it is differentiated."""
    return tree


@undifferentiated.defjvp
def _refuse(primals, tangents):
    raise ValueError(
        "hypergradient, solve, argmin(...).checked and data= have no derivative: differentiate"
        " through argmin and its x, or pass jax.lax.stop_gradient of what is differentiated."
    )


VARIABLES = variables()
DATA = anything("the third argument of upper and lower")
_PROGRAMS = 32


def per_problem(num_static: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` of function(problem, ...), whose first `num_static` arguments are static. Programs
    of the last problems are kept, and not of all: with one goes what its problem closes over.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.lru_cache(_PROGRAMS)
        def program(*static: Any) -> Callable[..., Any]:
            return jax.jit(functools.partial(function, *static))

        return lambda *arguments: program(*arguments[:num_static])(*arguments[num_static:])

    return decorate


def arrays_only(x: Tree, y: Tree) -> tuple[Tree, Tree]:
    """x and y as `VARIABLES` of one dtype, with everything else hidden in the structure."""
    sizes: dict[str, int] = {}
    dtype = VARIABLES.dtype(x) or VARIABLES.dtype(y) or computed(np.float64)
    pair = tuple(
        VARIABLES.convert(name, tree, sizes, dtype) for name, tree in (("x", x), ("y0", y))
    )
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else Constant(leaf), pair)


def original(tree: Tree) -> Tree:
    """Undo `arrays_only`: what the user's functions see, and what a solver returns."""
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, Constant) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Constant),
    )


def like(tree: Tree, result: Tree) -> Tree:
    """What a user's function returned, with the structure of `tree`."""
    leaves = [leaf for leaf in jax.tree.leaves(result) if hasattr(leaf, "dtype")]
    _checks.require(
        [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(tree)],
        "a projection or lower_difference must return arrays like its argument,"
        f" {jax.tree.map(jnp.shape, tree)}.",
    )
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def require_like(name: str, tree: Tree, expected: Tree) -> None:
    """An error unless `tree` has the structure, shapes and dtypes of `expected`."""

    def layout(tree: Tree) -> tuple[Any, list[Any]]:
        return jax.tree.structure(tree), [
            (jnp.shape(leaf), str(jnp.result_type(leaf))) for leaf in jax.tree.leaves(tree)
        ]

    (structure, leaves), (wanted, wanted_leaves) = layout(tree), layout(expected)
    _checks.require(
        structure == wanted and leaves == wanted_leaves,
        f"{name} does not fit this problem and method: it has {leaves} where {wanted_leaves}"
        " belong. Start without it, or from their own.",
    )


def on_arrays(function: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    """A user's map of trees, such as a projection, as a map of the solvers' trees."""
    return lambda tree: like(tree, function(original(tree)))


def prox_at(problem: Problem, x: Tree, rate: Any) -> Callable[[Tree], Tree]:
    """The lower level's proximal operator as a map of the solvers' trees."""
    prox = problem.prox_y
    assert prox is not None
    return on_arrays(lambda y: prox(original(x), y, rate))


def dtype_of(tree: Tree) -> Any:
    return jax.tree.leaves(tree)[0].dtype


def _require_takes(name: str, function: Callable[..., Any], number: int) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # what is built in tells nothing
        return
    given = "(x, y)" if number == 2 else "(x, y, data)"
    try:
        signature.bind(*range(number))
    except TypeError:
        raise ValueError(
            f"{name} takes {signature} and is called with {given}: data go to it where, and only"
            " where, data= is passed."
        ) from None


class Oracle:
    """Values and gradients of a problem on one batch, with products in full precision. `batch=None`
    means functions of (x, y) alone.
    """

    def __init__(self, problem: Problem, batch: Any = None):
        self.problem = problem
        self.rest = () if batch is None else (batch,)

    def _call(self, name: str, function: Callable[..., Any], x: Tree, y: Tree) -> jax.Array:
        arguments = (original(x), original(y), *self.rest)
        _require_takes(name, function, len(arguments))
        with jax.default_matmul_precision("highest"):
            value = jnp.asarray(function(*arguments))
        _checks.require(
            value.shape == (),
            f"{name} must return a scalar, got shape {list(value.shape)}: take a sum or a mean.",
        )
        return value

    def upper(self, x: Tree, y: Tree) -> jax.Array:
        return self._call("upper", self.problem.upper, x, y)

    def lower(self, x: Tree, y: Tree) -> jax.Array:
        return self._call("lower", self.problem.lower, x, y)

    def distance(self, x: Tree, y: Tree) -> jax.Array:
        """How far y is from the minimiser, as a share, where the problem knows it; else 0."""
        known = getattr(self.problem, "distance", None)
        if known is None:
            return jnp.zeros((), dtype_of(y))
        return self._call("distance", known, x, y)

    def size(self, y: Tree) -> jax.Array:
        """The length on which `lower` changes: where the problem does not know, that of y."""
        known = getattr(self.problem, "unit", None)
        return size_of(y) if known is None else jnp.asarray(known, dtype_of(y))

    def guess(self, x: Tree, y: Tree) -> Tree:
        """Where the minimiser is, where the problem knows; else y."""
        known = getattr(self.problem, "guess", None)
        return y if known is None else like(y, known(original(x), original(y), *self.rest))

    @property
    def subtracts_nothing(self) -> bool:
        """Whether changes of the lower gradients come without cancellation."""
        return self.problem.lower_difference is not None or self.problem.allow_jvp

    @property
    def knows(self) -> bool:
        """Whether no saddle can pass for the minimiser."""
        return getattr(self.problem, "distance", None) is not None

    def steer(self, x: Tree, y: Tree, v: Tree) -> Tree:
        """v times an approximate inverse of the lower level's Hessian, up to a factor, where the
        problem knows one; else v.
        """
        known = getattr(self.problem, "metric", None)
        if known is None:
            return v
        return jax.tree.map(jnp.divide, v, like(v, known(original(x), original(y), *self.rest)))

    def _nonsmooth(self, x: Tree, y: Tree) -> jax.Array:
        assert self.problem.nonsmooth is not None
        return self._call("nonsmooth", self.problem.nonsmooth, x, y)

    def whole_lower(self, x: Tree, y: Tree) -> jax.Array:
        """The lower level's value, nonsmooth part and all."""
        value = self.lower(x, y)
        return value if self.problem.nonsmooth is None else value + self._nonsmooth(x, y)

    def upper_gradients(self, x: Tree, y: Tree) -> tuple[Tree, Tree]:
        return _loops.grad(self.upper, (0, 1))(x, y)

    def upper_x(self, x: Tree, y: Tree) -> Tree:
        return _loops.grad(self.upper, 0)(x, y)

    def upper_y(self, x: Tree, y: Tree) -> Tree:
        return _loops.grad(self.upper, 1)(x, y)

    def lower_x(self, x: Tree, y: Tree) -> Tree:
        return _loops.grad(self.whole_lower, 0)(x, y)

    def lower_and_gradient(self, x: Tree, y: Tree) -> tuple[jax.Array, Tree]:
        return jax.value_and_grad(self.lower, 1)(*_loops.own(self.lower, x, y))

    def lower_y(self, x: Tree, y: Tree) -> Tree:
        return _loops.grad(self.lower, 1)(x, y)

    def difference_x(self, x: Tree, y: Tree, step: Tree) -> Tree:
        return self.lower_changes(0, x, y, step)[1][0]

    def difference_y(self, x: Tree, y: Tree, step: Tree) -> Tree:
        return self.lower_changes(1, x, y, step)[1][0]

    def lower_changes(
        self, argument: int, x: Tree, y: Tree, *steps: Tree
    ) -> tuple[Tree, tuple[Tree, ...]]:
        """The gradient of `lower` in x (argument 0) or y (1) at y, and its change when y moves by
        each of `steps`.
        """
        gradient = (self.lower_x, self.lower_y)[argument]
        if self.subtracts_nothing:
            return gradient(x, y), tuple(self._change(argument, x, y, step) for step in steps)
        points = (y, *(add(y, step) for step in steps))
        if self.problem.batch_copies:
            # one batch: a product with the data reads them once for all copies, and is a wider one
            many = jax.vmap(lambda y: gradient(x, y))(
                jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
            )
            first, *others = (
                jax.tree.map(lambda leaf, k=k: leaf[k], many) for k in range(len(points))
            )
        else:
            first, *others = (gradient(x, point) for point in points)
        # the rows of a batch may round differently: a step of zero changes nothing
        others = (
            jax.tree.map(functools.partial(jnp.where, norm(step) != 0), other, first)
            for step, other in zip(steps, others, strict=True)
        )
        return first, tuple(subtract(other, first) for other in others)

    def _change(self, argument: int, x: Tree, y: Tree, step: Tree) -> Tree:
        """The gradient of `lower` in `argument` at y + step, less that at y, without subtracting
        them.
        """
        if self.problem.lower_difference is not None:
            with jax.default_matmul_precision("highest"):
                changes = self.problem.lower_difference(
                    original(x), original(y), original(step), *self.rest
                )
            change = like((x, y)[argument], changes[argument])
        else:
            change = self.derivative(argument, x, add(y, step, 0.5), step)
        if argument == 1 or self.problem.nonsmooth is None:
            return change
        gradient = _loops.grad(self._nonsmooth, 0)
        return add(change, subtract(gradient(x, add(y, step)), gradient(x, y)))

    def derivative(self, argument: int, x: Tree, y: Tree, direction: Tree) -> Tree:
        """Second-order product: the derivative of the smooth lower gradient in `argument` as y
        moves along `direction`.
        """
        gradient = _loops.grad(self.lower, argument)
        return jax.jvp(lambda moved: gradient(x, moved), (y,), (direction,))[1]


def add(left: Tree, right: Tree, factor: Any = 1.0) -> Tree:
    """left + factor · right."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(factor, a.dtype) * b, left, right)


def subtract(left: Tree, right: Tree) -> Tree:
    return jax.tree.map(jnp.subtract, left, right)


def scale(tree: Tree, factor: Any) -> Tree:
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def zeros(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)


def size_of(y: Tree) -> jax.Array:
    """‖y‖, at least 1e-3, and 1 where y = 0, which has no size."""
    size = norm(y)
    return jnp.where(size > 0, jnp.maximum(size, 1e-3), 1.0)


def norm(tree: Tree) -> jax.Array:
    """Euclidean norm of all leaves together, without overflow or underflow of the squares."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]).max()
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    size = safe * jnp.sqrt(sum(jnp.sum((leaf / safe) ** 2) for leaf in leaves))
    return jnp.where(largest == 0, 0.0, size).astype(leaves[0].dtype)
