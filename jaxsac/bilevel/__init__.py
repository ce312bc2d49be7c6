"""Bilevel optimisation with first-order penalties: minimise upper(x, y*(x)), y*(x) = arg min_y
lower(x, y), from gradients alone.

A perturbed copy of the lower level is compared with an unperturbed one: their difference over sigma
is the hypergradient. Both copies share starts, steps and batches, so that what they have in common
cancels, and the difference is stored, so that float32 keeps its digits. Source: Gaur, Bedi, Wang,
Aggarwal, "On the Sample Complexity Bounds in Bilevel Reinforcement Learning", arXiv 2503.17644 (its
first version states a sample complexity of epsilon^-4, the later ones about epsilon^-3).
"""

from jaxsac.bilevel.certificate import Diagnostics as Diagnostics
from jaxsac.bilevel.hypergradient import Argmin as Argmin
from jaxsac.bilevel.hypergradient import HypergradientCheck as HypergradientCheck
from jaxsac.bilevel.hypergradient import argmin as argmin
from jaxsac.bilevel.hypergradient import check_hypergradient as check_hypergradient
from jaxsac.bilevel.hypergradient import hypergradient as hypergradient
from jaxsac.bilevel.paired import PairedOptimizer as PairedOptimizer
from jaxsac.bilevel.paired import paired_adam as paired_adam
from jaxsac.bilevel.policies import Trajectories as Trajectories
from jaxsac.bilevel.policies import natural_gradient as natural_gradient
from jaxsac.bilevel.policies import policy_problem as policy_problem
from jaxsac.bilevel.policies import rollout as rollout
from jaxsac.bilevel.policies import sampled_policy_problem as sampled_policy_problem
from jaxsac.bilevel.policies import sampled_return as sampled_return
from jaxsac.bilevel.policies import softmax_policy as softmax_policy
from jaxsac.bilevel.problem import Problem as Problem
from jaxsac.bilevel.solver import Bilevel as Bilevel
from jaxsac.bilevel.solver import Method as Method
from jaxsac.bilevel.solver import State as State
from jaxsac.bilevel.solver import diagnose as diagnose
from jaxsac.bilevel.solver import init as init
from jaxsac.bilevel.solver import solve as solve
from jaxsac.bilevel.solver import step as step
from jaxsac.bilevel.tabular import MDP as MDP
from jaxsac.bilevel.tabular import SoftValues as SoftValues
from jaxsac.bilevel.tabular import expected_return as expected_return
from jaxsac.bilevel.tabular import policy_value as policy_value
from jaxsac.bilevel.tabular import soft_solve as soft_solve
