"""Sparse agentic control: logged decisions to a sparse policy over budgeted sets of tools."""

from jaxsac.control.conditions import irrepresentability as irrepresentability
from jaxsac.control.conditions import restricted_curvature as restricted_curvature
from jaxsac.control.conditions import signal_threshold as signal_threshold
from jaxsac.control.diagnose import diagnose as diagnose
from jaxsac.control.diagnosis import Diagnosis as Diagnosis
from jaxsac.control.fit import FitState as FitState
from jaxsac.control.fit import fit as fit
from jaxsac.control.fit import lam_max as lam_max
from jaxsac.control.fit import simulated_lam as simulated_lam
from jaxsac.control.log import Log as Log
from jaxsac.control.off_policy import OffPolicyValue as OffPolicyValue
from jaxsac.control.off_policy import importance_value as importance_value
from jaxsac.control.off_policy import off_policy_value as off_policy_value
from jaxsac.control.policy import SparsePolicy as SparsePolicy
from jaxsac.control.policy import load_policy as load_policy
from jaxsac.control.tool_features import ToolModel as ToolModel
from jaxsac.control.tool_features import fit_tool_model as fit_tool_model
from jaxsac.control.witness import Witness as Witness
from jaxsac.control.witness import oracle_witness as oracle_witness
