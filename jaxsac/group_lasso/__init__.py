"""Group lasso with smooth convex losses: certified solutions, paths, derivatives."""

from jaxsac.group_lasso.simulation import simulated_lam as simulated_lam
from jaxsac.group_lasso.solver import lam_max as lam_max
from jaxsac.group_lasso.solver import path as path
from jaxsac.group_lasso.solver import solve as solve
from jaxsac.group_lasso.tuning import CrossValidation as CrossValidation
from jaxsac.group_lasso.tuning import cross_validate as cross_validate
