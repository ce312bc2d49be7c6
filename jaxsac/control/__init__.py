"""Sparse agentic control: logged decisions to a sparse policy over budgeted sets of tools."""

from jaxsac.control.fit import FitState as FitState
from jaxsac.control.fit import fit as fit
from jaxsac.control.fit import lam_max as lam_max
from jaxsac.control.fit import simulated_lam as simulated_lam
from jaxsac.control.log import Log as Log
from jaxsac.control.policy import SparsePolicy as SparsePolicy
from jaxsac.control.policy import load_policy as load_policy
