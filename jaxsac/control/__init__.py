"""Sparse agentic control: logged decisions to a sparse policy over budgeted sets of tools."""

from jaxsac.control import conditions as conditions, online as online, robust as robust
from jaxsac.control.data.channels import Channels as Channels
from jaxsac.control.data.log import Log as Log
from jaxsac.control.data.task import Task as Task
from jaxsac.control.fits.fit import fit as fit, lam_max as lam_max, simulated_lam as simulated_lam
from jaxsac.control.fits.interactions import (
    Interactions as Interactions,
    PairwisePolicy as PairwisePolicy,
    fit_interactions as fit_interactions,
    pairwise_policy as pairwise_policy,
)
from jaxsac.control.fits.joint import fit_joint as fit_joint
from jaxsac.control.imitation.working import FitState as FitState
from jaxsac.control.policy.joint import JointPolicy as JointPolicy
from jaxsac.control.policy.sparse import SparsePolicy as SparsePolicy, load_policy as load_policy
from jaxsac.control.trust.diagnose import diagnose as diagnose
from jaxsac.control.trust.diagnosis import Diagnosis as Diagnosis
from jaxsac.control.trust.off_policy import (
    OffPolicyValue as OffPolicyValue,
    importance_value as importance_value,
    off_policy_value as off_policy_value,
)
