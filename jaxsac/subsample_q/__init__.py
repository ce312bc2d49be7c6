"""SUBSAMPLE-Q: a global agent learns on k of n local agents and acts on fresh samples (arXiv
2403.00222).
"""

from jaxsac.subsample_q import network as network
from jaxsac.subsample_q.data.histograms import HistogramSpace as HistogramSpace
from jaxsac.subsample_q.data.model import LocalActionModel as LocalActionModel
from jaxsac.subsample_q.data.model import Model as Model
from jaxsac.subsample_q.data.model import TypedModel as TypedModel
from jaxsac.subsample_q.data.sampling import lift as lift
from jaxsac.subsample_q.data.sampling import population_state as population_state
from jaxsac.subsample_q.exact.agent_types import TypedTable as TypedTable
from jaxsac.subsample_q.exact.agent_types import solve_types as solve_types
from jaxsac.subsample_q.exact.iteration.fixed_point import METHODS as METHODS
from jaxsac.subsample_q.exact.local_actions import AssignmentTable as AssignmentTable
from jaxsac.subsample_q.exact.local_actions import solve_local_actions as solve_local_actions
from jaxsac.subsample_q.exact.operator.plan import BACKENDS as BACKENDS
from jaxsac.subsample_q.exact.operator.plan import Plan as Plan
from jaxsac.subsample_q.exact.operator.plan import plan as plan
from jaxsac.subsample_q.exact.solver import evaluate as evaluate
from jaxsac.subsample_q.exact.solver import solve as solve
from jaxsac.subsample_q.exact.table import Bounds as Bounds
from jaxsac.subsample_q.exact.table import QTable as QTable
from jaxsac.subsample_q.execute.kinds import simulate_local_actions as simulate_local_actions
from jaxsac.subsample_q.execute.kinds import simulate_types as simulate_types
from jaxsac.subsample_q.execute.simulation import Run as Run
from jaxsac.subsample_q.execute.simulation import simulate as simulate
from jaxsac.subsample_q.execute.simulation import simulate_agents as simulate_agents
from jaxsac.subsample_q.learn.q_learning import Trajectory as Trajectory
from jaxsac.subsample_q.learn.q_learning import learn_from_trajectory as learn_from_trajectory
from jaxsac.subsample_q.learn.q_learning import q_learning as q_learning
from jaxsac.subsample_q.learn.sampled import learn as learn
from jaxsac.subsample_q.trust.certificate import GapBounds as GapBounds
from jaxsac.subsample_q.trust.certificate import certify as certify
from jaxsac.subsample_q.trust.certificate import choose_k as choose_k
from jaxsac.subsample_q.trust.certificate import upper_bound as upper_bound
from jaxsac.subsample_q.trust.certificate import upper_bound_types as upper_bound_types
