"""Group lasso with smooth convex losses: certified solutions, paths, derivatives."""

from jaxsac.group_lasso.choice.criteria import (
    Criterion as Criterion,
    degrees_of_freedom as degrees_of_freedom,
    ebic as ebic,
    support_margin as support_margin,
)
from jaxsac.group_lasso.choice.cross_validation import (
    CrossValidation as CrossValidation,
    cross_validate as cross_validate,
)
from jaxsac.group_lasso.choice.refit import refit as refit
from jaxsac.group_lasso.choice.simulated_lam import simulated_lam as simulated_lam
from jaxsac.group_lasso.choice.stability import (
    Stability as Stability,
    stability_selection as stability_selection,
)
from jaxsac.group_lasso.methods import METHODS as METHODS
from jaxsac.group_lasso.methods.loop.fista import State as State
from jaxsac.group_lasso.problem.record import LinearModel as LinearModel, Problem as Problem
from jaxsac.group_lasso.solver import lam_max as lam_max, path as path, solve as solve
