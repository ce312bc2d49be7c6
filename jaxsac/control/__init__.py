"""Sparse agentic control: logged decisions to a sparse policy over budgeted sets of tools."""

from jaxsac.control.conditions import irrepresentability as irrepresentability
from jaxsac.control.conditions import restricted_curvature as restricted_curvature
from jaxsac.control.conditions import signal_threshold as signal_threshold
from jaxsac.control.fit import FitState as FitState
from jaxsac.control.fit import fit as fit
from jaxsac.control.fit import lam_max as lam_max
from jaxsac.control.fit import simulated_lam as simulated_lam
from jaxsac.control.log import Log as Log
from jaxsac.control.policy import SparsePolicy as SparsePolicy
from jaxsac.control.policy import load_policy as load_policy
from jaxsac.control.witness import Witness as Witness
from jaxsac.control.witness import oracle_witness as oracle_witness
