"""Pure JAX kernels for decision making over huge action spaces."""

from jaxsac import (
    bandits as bandits,
    bilevel as bilevel,
    control as control,
    designs as designs,
    gibbs as gibbs,
    group_lasso as group_lasso,
    losses as losses,
    prox as prox,
    subsample_q as subsample_q,
    trials as trials,
)
from jaxsac._files import FileError as FileError
from jaxsac.prox import Groups as Groups
from jaxsac.route.deployed import Router as Router
from jaxsac.solution import (
    Reason as Reason,
    Solution as Solution,
    SolverError as SolverError,
    Status as Status,
)
from jaxsac.trials import run_trials as run_trials, summarise as summarise

__version__ = "0.1.0"  # said here alone: pyproject.toml reads it
