"""SUBSAMPLE-Q: a global agent learns on k of n local agents and acts on fresh samples (arXiv 2403.00222)."""

from jaxsac.subsample_q.certify import GapBounds as GapBounds
from jaxsac.subsample_q.certify import certify as certify
from jaxsac.subsample_q.certify import choose_k as choose_k
from jaxsac.subsample_q.certify import evaluate as evaluate
from jaxsac.subsample_q.certify import execution_weights as execution_weights
from jaxsac.subsample_q.certify import population_state as population_state
from jaxsac.subsample_q.certify import sampling_error as sampling_error
from jaxsac.subsample_q.certify import upper_bound as upper_bound
from jaxsac.subsample_q.histograms import HistogramSpace as HistogramSpace
from jaxsac.subsample_q.learn import learn as learn
from jaxsac.subsample_q.learn import q_learning as q_learning
from jaxsac.subsample_q.model import Model as Model
from jaxsac.subsample_q.operators import BACKENDS as BACKENDS
from jaxsac.subsample_q.operators import Plan as Plan
from jaxsac.subsample_q.operators import plan as plan
from jaxsac.subsample_q.sampling import lift as lift
from jaxsac.subsample_q.simulate import Run as Run
from jaxsac.subsample_q.simulate import simulate as simulate
from jaxsac.subsample_q.simulate import simulate_agents as simulate_agents
from jaxsac.subsample_q.solver import Bounds as Bounds
from jaxsac.subsample_q.solver import QTable as QTable
from jaxsac.subsample_q.solver import solve as solve
from jaxsac.subsample_q.trajectory import Trajectory as Trajectory
from jaxsac.subsample_q.trajectory import learn_from_trajectory as learn_from_trajectory
