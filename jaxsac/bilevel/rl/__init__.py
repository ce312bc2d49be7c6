"""Bilevel reinforcement learning: tabular processes solved exactly, and the problems whose lower
level is a policy, exact or sampled, of finite or continuous states and actions.
"""

from jaxsac.bilevel.rl.continuous import (
    Noise as Noise,
    Process as Process,
    simulated_policy_problem as simulated_policy_problem,
    simulated_return as simulated_return,
)
from jaxsac.bilevel.rl.policies import (
    natural_gradient as natural_gradient,
    policy_problem as policy_problem,
    softmax_policy as softmax_policy,
)
from jaxsac.bilevel.rl.tabular import (
    MDP as MDP,
    SoftValues as SoftValues,
    expected_return as expected_return,
    policy_value as policy_value,
    soft_solve as soft_solve,
)
from jaxsac.bilevel.rl.trajectories import (
    Trajectories as Trajectories,
    rollout as rollout,
    sampled_policy_problem as sampled_policy_problem,
    sampled_return as sampled_return,
)
