"""The problem and its answer as the public sees them: what is fitted to what, said once, and the
linear model that a solution holds.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, design, either, flag, real, record
from jaxsac.designs import as_design
from jaxsac.group_lasso.problem.objective import Coefficients, Objective, centre
from jaxsac.losses import Loss, resolve
from jaxsac.losses.names import LOSS
from jaxsac.prox import Groups, Penalty
from jaxsac.prox.groups import GROUPS
from jaxsac.prox.penalty import non_negative
from jaxsac.solution import Hashable, Solution, register

FEW_FREE = 256  # unpenalised coefficients that a method may refit at every check
_NAMES = {
    type(resolve(name)): name
    for name in ("squared", "logistic", "huber", "sqrt", "poisson", "multinomial")
}


@register
@arguments(
    coef=real(...), intercept=real(...), loss=anything("the name of a loss"), has_intercept=flag()
)
class LinearModel(Hashable):
    """What a solution of the group lasso holds: z = X coef + intercept; [L, ...] each, of a path.

    * `coef`: [p], in the units of z per unit of a column.
    * `intercept`: [], or [M] for M outputs; in the units of z, and 0 where none was fitted.
    * `loss`, `has_intercept`: the problem's; static names, which travel through jit and `export`,
      and by which another problem refuses the model as an answer.
    """

    coef: jax.Array
    intercept: jax.Array
    loss: str = eqx.field(static=True, default="squared")
    has_intercept: bool = eqx.field(static=True, default=True)

    def predict(self, X: Any) -> jax.Array:
        """z = X coef + intercept, of the shape of the design's predictions, with a leading axis [L]
        for a path; without the problem's offset. X is a matrix [T, p] or a design.
        """
        design, coef = as_design(X), self.coef
        fits = design.num_coefficients == coef.shape[-1]
        _checks.require(
            fits, f"X must have {coef.shape[-1]} columns, got {design.num_coefficients}."
        )
        if coef.ndim > 1:
            return jax.vmap(lambda one: one.predict(design))(self)
        z = design.predict(coef)
        return z + jnp.broadcast_to(self.intercept[None], z.shape)


class Problem(eqx.Module):
    """What a group lasso fits to what: F(z) = (1/T) Σ_t c_t ℓ(y_t, z_t), z = offset + X b +
    intercept, and the penalty Σ_g w_g ‖b_g‖₂, which a lam multiplies.

    Said once: every question takes the record, `solve(problem, lam)`, `path(problem)`,
    `degrees_of_freedom(problem, solution)`. Checked when it is made, traced arrays too (a bad value
    in one of those becomes NaN). A pytree for jit, vmap and grad; `dataclasses.replace(problem,
    sample_weight=c)` is the same problem with other weights.

    * `X`: a matrix [T, p] or a design of `jaxsac.designs`; kept as a design. Columns are used as
      they are: centring and standardising them is the caller's choice.
    * `y`: targets [T], or [T, M] for a design with M outputs.
    * `groups`: `jaxsac.Groups` over the p coefficients.
    * `loss`: "squared", "logistic" (y = ±1), "huber", "sqrt", "poisson", "multinomial", or a
      `losses.Loss`. With "sqrt" F is (Σ_t c_t r_t² / T)^½, r = y − z, for which the right lam does
      not depend on the noise (`simulated_lam`; see `losses.SquareRoot`).
    * `weights`: w ≥ 0 [G]: None is 1 for every group, "sqrt_size" the square root of its size; 0 is
      unpenalised, and infinity holds a group at zero (at lam > 0).
    * `sample_weight`: c ≥ 0 [T]: None is 1. They are not normalised: F divides by T. A record of
      weight 2 is the same record twice in a data set whose T is not changed.
    * `offset`: of the shape of y, in its units: None is 0.
    * `intercept`: an unpenalised constant, one for each output.
    * `penalty`: a `jaxsac.prox.Penalty` to be added: a ridge, an l1 norm, families of groups, b ≥
      0. Its norms are multiplied by lam.
    * `most_free`: at most so many coefficients have weight 0; 0, 256 or more, and found out.

    Raises: ValueError for shapes that do not fit, negative weights, unknown names.
    """

    X: Any
    y: jax.Array
    groups: Groups
    loss: Loss
    weights: jax.Array
    sample_weight: jax.Array
    offset: jax.Array
    intercept: bool = eqx.field(static=True)
    penalty: Penalty | None
    most_free: int = eqx.field(static=True, init=False)

    @arguments(
        X=design(),
        y=anything("targets [T], or [T, M]", like=real("T")),
        groups=GROUPS,
        loss=LOSS,
        weights=either(choice("sqrt_size"), real("G", low=0)),
        sample_weight=real("T", low=0),
        offset=anything("as y", like=real("T")),
        intercept=flag(),
        penalty=record(Penalty),
    )
    def __init__(
        self,
        X: Any,
        y: Any,
        groups: Groups,
        loss: str | Loss = "squared",
        weights: Any = None,
        sample_weight: Any = None,
        offset: Any = None,
        intercept: bool = False,
        penalty: Penalty | None = None,
    ):
        design, loss = as_design(X), resolve(loss)
        shape, dtype = design.prediction_shape, design.dtype
        y = loss.target(y, shape, dtype)
        filled = _filled_on_host if _checks.is_concrete(design, y) else jnp.full
        if isinstance(weights, str):
            weights = jnp.sqrt(groups.sizes.astype(dtype))
        if weights is None:
            weights, most_free = filled((groups.num_groups,), 1.0, dtype), 0
        else:
            weights = non_negative(weights)
            most_free = _most_free(weights, groups)
        if sample_weight is None:
            sample_weight = filled(shape[:1], 1.0, dtype)
        else:
            sample_weight = non_negative(sample_weight)
        if offset is None:
            offset = filled(shape, 0.0, dtype)
        else:
            offset = real(*shape).take("offset", offset, dtype)
        if penalty is not None and penalty.nonnegative and _checks.is_concrete(weights):
            held = penalty.l1 is not None or bool(penalty.levels)
            _checks.require(
                held or bool(np.all(np.asarray(weights) > 0)),
                "weights must be > 0 beside penalty.nonnegative: what only b >= 0 holds has no"
                " certificate; give it a small weight.",
            )
        self.X, self.y, self.groups, self.loss = design, y, groups, loss
        self.weights, self.sample_weight, self.offset = weights, sample_weight, offset
        self.intercept, self.most_free = intercept, most_free
        self.penalty = None if penalty is None else penalty.checked(groups, dtype)

    @staticmethod
    def of(X: Any, y: Any, groups: Any, **words: Any) -> "Problem":
        """The record that X is, or the one that the words make; None says nothing."""
        said = {name: word for name, word in words.items() if word is not None}
        if not isinstance(X, Problem):
            return Problem(X, y, groups, **said)
        also = ["y"] * (y is not None) + ["groups"] * (groups is not None) + list(said)
        _checks.require(
            not also,
            f"the problem already says {', '.join(also)}: leave it out, or make another with"
            " dataclasses.replace.",
        )
        return X

    @property
    def dtype(self) -> Any:
        """That of X and of all that is computed."""
        return self.X.dtype

    @property
    def loss_name(self) -> str:
        """ "squared", ..., or the name of the class of another `Loss`."""
        kind = type(self.loss)
        return _NAMES.get(kind, kind.__qualname__)

    def with_sample_weight(self, sample_weight: jax.Array) -> "Problem":
        """With other weights c ≥ 0 [T], not checked: what a fold, a half or a draw is."""
        return eqx.tree_at(lambda problem: problem.sample_weight, self, sample_weight)

    def at(self, lam: Any, *, free_lam: bool | None = None) -> Objective:
        """The objective at a lam ≥ 0, for the methods; `free_lam`: whether others of its kind may
        have a lam of 0, None: whether this one may.
        """
        design, y, offset, sample_weight = self.X, self.y, self.offset, self.sample_weight
        lam = real(low=0).take("lam", lam, design.dtype)
        if free_lam is None:
            free_lam = not _checks.is_concrete(lam) or float(lam) == 0
        intercept = self.intercept
        return Objective(
            centre(design, sample_weight) if intercept else design,
            y,
            self.groups,
            jnp.asarray(lam),
            self.weights,
            sample_weight,
            offset,
            self.loss.for_data(y, offset, sample_weight),
            intercept,
            self.most_free,
            free_lam,
            self.penalty,
        )

    def model(self, point: Coefficients) -> LinearModel:
        """The answer with these coefficients."""
        return LinearModel(*point, self.loss_name, self.intercept)

    def coefficients(self, answer: Solution | LinearModel) -> Coefficients:
        """Those of an answer to this problem; ValueError for the answer to another."""
        value = answer.value if isinstance(answer, Solution) else answer
        _checks.require(
            isinstance(value, LinearModel),
            f"a solution of group_lasso, or its value, is wanted, got {type(value).__name__}.",
        )
        for name, theirs, ours in (
            ("loss", value.loss, self.loss_name),
            ("intercept", value.has_intercept, self.intercept),
        ):
            _checks.require(
                theirs == ours,
                f"the solution was fitted with {name} {theirs!r}, the problem has {ours!r}: pass"
                " the problem that was solved.",
            )
        _checks.check_shape("solution.value.coef", value.coef, (self.groups.num_coefficients,))
        _checks.check_shape("solution.value.intercept", value.intercept, self.offset.shape[1:])
        return Coefficients(value.coef, value.intercept)


def _most_free(weights: jax.Array, groups: Groups) -> int:
    """One of three, so that few programs are compiled."""
    size = groups.max_size
    if not _checks.is_concrete(weights):
        return max(groups.num_groups * size, FEW_FREE + 1)
    count = int(np.sum(np.asarray(weights) == 0)) * size
    if count > FEW_FREE:
        return groups.num_groups * size
    return FEW_FREE if count else 0


def _filled_on_host(shape: tuple[int, ...], value: float, dtype: Any) -> jax.Array:
    """`jnp.full` without a program, whose call takes four times as long; in a trace it would be a
    constant of that many numbers.
    """
    return jnp.asarray(np.full(shape, value, dtype))


def _sizes(problem: Problem) -> dict[str, int]:
    groups = problem.groups
    return {"T": problem.offset.shape[0], "p": groups.num_coefficients, "G": groups.num_groups}


PROBLEM = record(Problem, sizes=_sizes)
