"""Group lasso with smooth convex losses: certified solutions, paths, derivatives."""

from jaxsac.group_lasso.choice.criteria import Criterion as Criterion
from jaxsac.group_lasso.choice.criteria import degrees_of_freedom as degrees_of_freedom
from jaxsac.group_lasso.choice.criteria import ebic as ebic
from jaxsac.group_lasso.choice.criteria import support_margin as support_margin
from jaxsac.group_lasso.choice.cross_validation import CrossValidation as CrossValidation
from jaxsac.group_lasso.choice.cross_validation import cross_validate as cross_validate
from jaxsac.group_lasso.choice.refit import refit as refit
from jaxsac.group_lasso.choice.simulated_lam import simulated_lam as simulated_lam
from jaxsac.group_lasso.choice.stability import Stability as Stability
from jaxsac.group_lasso.choice.stability import stability_selection as stability_selection
from jaxsac.group_lasso.methods import METHODS as METHODS
from jaxsac.group_lasso.methods.loop.fista import State as State
from jaxsac.group_lasso.problem.record import LinearModel as LinearModel
from jaxsac.group_lasso.problem.record import Problem as Problem
from jaxsac.group_lasso.solver import lam_max as lam_max
from jaxsac.group_lasso.solver import path as path
from jaxsac.group_lasso.solver import solve as solve
