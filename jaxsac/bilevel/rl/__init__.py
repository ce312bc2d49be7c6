"""Bilevel reinforcement learning: tabular processes solved exactly, and the problems whose lower
level is a policy, exact or sampled.
"""

from jaxsac.bilevel.rl.policies import Trajectories as Trajectories
from jaxsac.bilevel.rl.policies import natural_gradient as natural_gradient
from jaxsac.bilevel.rl.policies import policy_problem as policy_problem
from jaxsac.bilevel.rl.policies import rollout as rollout
from jaxsac.bilevel.rl.policies import sampled_policy_problem as sampled_policy_problem
from jaxsac.bilevel.rl.policies import sampled_return as sampled_return
from jaxsac.bilevel.rl.policies import softmax_policy as softmax_policy
from jaxsac.bilevel.rl.tabular import MDP as MDP
from jaxsac.bilevel.rl.tabular import SoftValues as SoftValues
from jaxsac.bilevel.rl.tabular import expected_return as expected_return
from jaxsac.bilevel.rl.tabular import policy_value as policy_value
from jaxsac.bilevel.rl.tabular import soft_solve as soft_solve
