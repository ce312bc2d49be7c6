"""Pure JAX kernels for decision making over huge action spaces."""

from jaxsac import bandits as bandits
from jaxsac import bilevel as bilevel
from jaxsac import control as control
from jaxsac import designs as designs
from jaxsac import gibbs as gibbs
from jaxsac import group_lasso as group_lasso
from jaxsac import losses as losses
from jaxsac import prox as prox
from jaxsac import subsample_q as subsample_q
from jaxsac.prox import Groups as Groups
from jaxsac.solution import Solution as Solution
from jaxsac.solution import SolverError as SolverError
from jaxsac.solution import Status as Status
from jaxsac.trials import run_trials as run_trials
from jaxsac.trials import summarise as summarise

__version__ = "0.1.0"
