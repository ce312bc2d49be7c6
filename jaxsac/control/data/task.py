"""The problem as a record: a log, and all that says what is to be learnt from it."""

from typing import Any

import equinox as eqx
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import arguments, choice, integer, real, record, size
from jaxsac.control.data.families import Families, checked_families
from jaxsac.control.data.log import Log, checked
from jaxsac.control.data.sample_weight import WEIGHTINGS, sample_weight
from jaxsac.solution import Hashable

OBJECTIVES = ("imitation", "weighted", "utility")
INTERCEPTS = ("per_tool", "shared", "none")


class Task(Hashable):
    """What is to be learnt from a log, said once and checked when it is made; a pytree.

    Letters: T records, M tools, q features, B the budget. Every question takes the task, then the
    answer: `fit(key, task, lam=...)`, `lam_max(task)`, `diagnose(task, solution)`.

    * `log`: a `Log` of concrete arrays. `num_actions` M; `budget` B ≥ 1 (B ≥ M is no budget).
    * `objective`: "imitation" of the logged sets; "weighted", the same with records that count by
      how well they went; "utility", least squares of the utilities. `fit` has the formulas.
    * `intercept`, unpenalised: "per_tool" (default) b_j of each tool; "shared" one b; "none" b = 0.
      For "utility": "shared" (default) is the constant, "none" leaves it out.
    * `smoothing` s > 0: the intercepts' conjugate prior, s records without a context in which every
      tool is used with the same probability m / M, m the mean set size, cut to [½, B − ½]. It keeps
      every intercept finite (that of a tool without a use would go to −∞) at a total weight of s
      records, however many tools there are; the others move by a share s/T.
    * `weighting` of "weighted": "advantage", c_t ∝ exp((u_t − mean u) / `advantage_scale`) (None:
      the standard deviation of u), or "propensity", c_t ∝ max(u_t, 0) / p_t; each cut so
      that none is above `clip` ≥ 1 times the mean of those that are not 0, then scaled to mean 1.
    * `families`: None, or int [M], the family of each tool (negative: none). The penalty is then
      lam [(1 − r) Σ_j ‖θ_j‖ + r Σ_F ‖θ_F‖], r = `family_share` in [0, 1), θ_F all coefficients of
      a family's tools together: once one of them is kept the others follow more easily, and a
      family that does not matter goes as one. A tool without a family is penalised by lam ‖θ_j‖.

    Defined: a context of zeros (it teaches the intercepts alone); a tool used once; repeated tools
    in a record (a set: they count once); B above every recorded size; a record without tools; equal
    columns. Contexts are used as they are: scaling them is the caller's choice.

    Raises: ValueError, naming the field and the records: an empty log, NaN or infinite data, tools
    out of range, records with more than B tools, propensities outside (0, 1], tools used where they
    were not available, a missing field, a word that the objective does not have, traced arrays.
    """

    log: Log  # checked, as numpy arrays; of "utility" without `available`
    sample_weight: np.ndarray  # [T], mean 1
    smoothing: float  # in records
    advantage_scale: float | None  # in units of utility
    clip: float  # in means
    families: Families | None  # None: no two tools share one
    num_actions: int = eqx.field(static=True)  # M
    budget: int = eqx.field(static=True)  # min(B, M)
    objective: str = eqx.field(static=True)  # one of OBJECTIVES
    intercept: str = eqx.field(static=True)  # one of INTERCEPTS
    weighting: str = eqx.field(static=True)  # of "weighted"

    @arguments(
        on_host=True,
        log=record(Log),
        num_actions=size(1),
        budget=size(1),
        objective=choice(*OBJECTIVES),
        intercept=choice(*INTERCEPTS),
        smoothing=real(above=0, below=np.inf),
        weighting=choice(*WEIGHTINGS),
        advantage_scale=real(above=0, below=np.inf),
        clip=real(low=1),
        families=integer("M"),
        family_share=real(low=0, below=1),
    )
    def __init__(
        self,
        log: Log,
        num_actions: int,
        budget: int,
        objective: str = "imitation",
        *,
        intercept: str | None = None,
        smoothing: float = 1.0,
        weighting: str = "advantage",
        advantage_scale: float | None = None,
        clip: float = 10.0,
        families: Any = None,
        family_share: float = 0.5,
    ) -> None:
        self.num_actions, self.budget = num_actions, min(budget, num_actions)
        self.objective, self.smoothing = objective, float(smoothing)
        self.intercept = intercept or ("shared" if objective == "utility" else "per_tool")
        log = checked_for(objective, log, self.num_actions, budget)
        self.families = checked_families(families, family_share, self.num_actions)
        self.weighting, self.clip = weighting, float(clip)
        self.advantage_scale = None if advantage_scale is None else float(advantage_scale)
        self.sample_weight = np.ones(log.contexts.shape[0])
        if objective == "weighted":
            self.sample_weight = sample_weight(log, weighting, self.advantage_scale, self.clip)
        if objective == "utility":
            _checks.require(
                self.intercept != "per_tool",
                'intercept must be "shared" or "none" for objective="utility": for a constant per'
                " tool, add a feature of ones.",
            )
            _checks.require(log.utilities is not None, 'objective="utility" needs log.utilities.')
        self.log = log

    @property
    def dtype(self) -> np.dtype:
        return self.log.contexts.dtype

    @property
    def num_records(self) -> int:
        return self.log.contexts.shape[0]

    @property
    def num_features(self) -> int:
        return self.log.contexts.shape[1]

    @property
    def prior_records(self) -> float:
        """The weight of the intercepts' prior: nothing where no intercept is fitted."""
        free = self.intercept != "none" and self.objective != "utility"
        return float(self.smoothing) if free else 0.0

    @property
    def meaning(self) -> tuple[str, str]:
        """The names that give an answer's numbers a meaning: objective and intercept."""
        return self.objective, self.intercept

    def checked(self, log: Log) -> Log:
        """Another log as this task would keep it."""
        return checked_for(self.objective, log, self.num_actions, self.budget)

    def with_log(self, log: Log) -> "Task":
        """The same question of another log, checked."""
        together = self.families
        return Task(
            log,
            self.num_actions,
            self.budget,
            self.objective,
            intercept=self.intercept,
            smoothing=self.smoothing,
            weighting=self.weighting,
            advantage_scale=self.advantage_scale,
            clip=self.clip,
            families=None if together is None else together.label,
            family_share=0.5 if together is None else together.share,
        )


def sizes(task: Task) -> dict[str, int]:
    """The letters of a task."""
    return {"M": task.num_actions, "q": task.num_features}


def checked_for(objective: str, log: Log, num_actions: int, budget: int) -> Log:
    log = checked(log, num_actions, budget)
    # Which sets could have been chosen says nothing about the utility of the one that was.
    return log._replace(available=None) if objective == "utility" else log


def task_of(task: Task | Log, words: dict[str, Any]) -> Task:
    """The task itself, or that of a log and the words of `Task`."""
    if not isinstance(task, Task):
        missing = {"num_actions", "budget"} - set(words)
        _checks.require(not missing, f"beside a Log pass {' and '.join(sorted(missing))}.")
        return Task(task, **words)
    _checks.require(
        not words, f"{', '.join(words)}: the Task has said it already; make another Task to change."
    )
    return task


def require_utility(task: Task, who: str) -> None:
    """For what that objective alone can answer, and not with families or without a constant."""
    _checks.require(
        task.meaning == ("utility", "shared") and task.families is None,
        f'{who} needs a task of objective="utility" with its default intercept and without'
        " families.",
    )
