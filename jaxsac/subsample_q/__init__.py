"""SUBSAMPLE-Q: a global agent learns on k of n local agents and acts on fresh samples (arXiv
2403.00222).
"""

from jaxsac.subsample_q import network as network
from jaxsac.subsample_q.data.histograms import HistogramSpace as HistogramSpace
from jaxsac.subsample_q.data.kinds import (
    LocalActionModel as LocalActionModel,
    TypedModel as TypedModel,
)
from jaxsac.subsample_q.data.model import Model as Model
from jaxsac.subsample_q.data.sampling import lift as lift, population_state as population_state
from jaxsac.subsample_q.exact.iteration.fixed_point import METHODS as METHODS
from jaxsac.subsample_q.exact.local_actions import AssignmentTable as AssignmentTable
from jaxsac.subsample_q.exact.operator.plan import BACKENDS as BACKENDS, Plan as Plan, plan as plan
from jaxsac.subsample_q.exact.solver import evaluate as evaluate, solve as solve
from jaxsac.subsample_q.exact.table import Bounds as Bounds, QTable as QTable
from jaxsac.subsample_q.execute.simulation import Run as Run, simulate as simulate
from jaxsac.subsample_q.learn.estimation import Estimate as Estimate, estimate as estimate
from jaxsac.subsample_q.learn.q_learning import (
    learn_from_trajectory as learn_from_trajectory,
    q_learning as q_learning,
)
from jaxsac.subsample_q.learn.recording import Trajectory as Trajectory, record as record
from jaxsac.subsample_q.learn.sampled import learn as learn
from jaxsac.subsample_q.trust.certificate import (
    ValueBounds as ValueBounds,
    certify as certify,
    choose_k as choose_k,
    upper_bound as upper_bound,
)
from jaxsac.subsample_q.trust.sample_sizes import (
    SampleSizes as SampleSizes,
    sample_sizes as sample_sizes,
)
