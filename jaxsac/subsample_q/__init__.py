"""SUBSAMPLE-Q: a global agent learns on k of n local agents and acts on fresh samples (arXiv
2403.00222).
"""

from jaxsac.subsample_q.agent_types import TypedModel as TypedModel
from jaxsac.subsample_q.agent_types import TypedTable as TypedTable
from jaxsac.subsample_q.agent_types import simulate_types as simulate_types
from jaxsac.subsample_q.agent_types import solve_types as solve_types
from jaxsac.subsample_q.agent_types import upper_bound_types as upper_bound_types
from jaxsac.subsample_q.certify import GapBounds as GapBounds
from jaxsac.subsample_q.certify import certify as certify
from jaxsac.subsample_q.certify import choose_k as choose_k
from jaxsac.subsample_q.certify import evaluate as evaluate
from jaxsac.subsample_q.certify import execution_weights as execution_weights
from jaxsac.subsample_q.certify import population_state as population_state
from jaxsac.subsample_q.certify import sampling_error as sampling_error
from jaxsac.subsample_q.certify import upper_bound as upper_bound
from jaxsac.subsample_q.data.histograms import HistogramSpace as HistogramSpace
from jaxsac.subsample_q.learn import learn as learn
from jaxsac.subsample_q.learn import q_learning as q_learning
from jaxsac.subsample_q.local_actions import AssignmentTable as AssignmentTable
from jaxsac.subsample_q.local_actions import LocalActionModel as LocalActionModel
from jaxsac.subsample_q.local_actions import simulate_local_actions as simulate_local_actions
from jaxsac.subsample_q.local_actions import solve_local_actions as solve_local_actions
from jaxsac.subsample_q.data.model import Model as Model
from jaxsac.subsample_q.network import Environment as Environment
from jaxsac.subsample_q.network import QNetwork as QNetwork
from jaxsac.subsample_q.network import from_model as from_model
from jaxsac.subsample_q.network import learn_network as learn_network
from jaxsac.subsample_q.network import network_table as network_table
from jaxsac.subsample_q.operators import BACKENDS as BACKENDS
from jaxsac.subsample_q.operators import Plan as Plan
from jaxsac.subsample_q.operators import plan as plan
from jaxsac.subsample_q.data.sampling import lift as lift
from jaxsac.subsample_q.simulate import Run as Run
from jaxsac.subsample_q.simulate import simulate as simulate
from jaxsac.subsample_q.simulate import simulate_agents as simulate_agents
from jaxsac.subsample_q.solver import Bounds as Bounds
from jaxsac.subsample_q.solver import QTable as QTable
from jaxsac.subsample_q.solver import solve as solve
from jaxsac.subsample_q.trajectory import Trajectory as Trajectory
from jaxsac.subsample_q.trajectory import learn_from_trajectory as learn_from_trajectory
