"""SUBSAMPLE-Q: a global agent learns on k of n local agents and acts on fresh samples (arXiv 2403.00222)."""

from jaxsac.subsample_q.histograms import HistogramSpace as HistogramSpace
from jaxsac.subsample_q.model import Model as Model
from jaxsac.subsample_q.operators import BACKENDS as BACKENDS
from jaxsac.subsample_q.operators import Plan as Plan
from jaxsac.subsample_q.operators import plan as plan
from jaxsac.subsample_q.solver import Bounds as Bounds
from jaxsac.subsample_q.solver import QTable as QTable
from jaxsac.subsample_q.solver import solve as solve
