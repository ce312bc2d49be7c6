"""Sparse-action linear bandits: play at most s of d coordinates, and how much of each, from noisy
rewards.
"""

from jaxsac.bandits.comparison import Comparison as Comparison, compare as compare
from jaxsac.bandits.engine.steps import Run as Run
from jaxsac.bandits.estimate.exploration import exploration_basis as exploration_basis
from jaxsac.bandits.estimate.radii import error_radius as error_radius
from jaxsac.bandits.phased.apsee import (
    apsee as apsee,
    apsee_greedy as apsee_greedy,
    stopping_time as stopping_time,
)
from jaxsac.bandits.phased.bound import regret_bound as regret_bound
from jaxsac.bandits.phased.commit import (
    e2tc as e2tc,
    estc as estc,
    explore_then_commit as explore_then_commit,
    phased_greedy as phased_greedy,
)
from jaxsac.bandits.phased.schedule import Phased as Phased
from jaxsac.bandits.replay import Replay as Replay, replay as replay
from jaxsac.bandits.sets.action_set import ActionSet as ActionSet, Selection as Selection
from jaxsac.bandits.sets.composed import (
    FromSupport as FromSupport,
    Masked as Masked,
    Product as Product,
)
from jaxsac.bandits.sets.ellipsoid import Ellipsoid as Ellipsoid
from jaxsac.bandits.sets.modular import (
    Ball as Ball,
    Box as Box,
    CrossPolytope as CrossPolytope,
    LpBall as LpBall,
    Modular as Modular,
    Simplex as Simplex,
)
from jaxsac.bandits.sets.polytope import Polytope as Polytope
from jaxsac.bandits.sets.supports import (
    best_support as best_support,
    branch_and_bound as branch_and_bound,
    greedy_support as greedy_support,
    submodularity_ratio as submodularity_ratio,
)
from jaxsac.bandits.simulation import simulate as simulate
from jaxsac.bandits.stepwise.arms import lin_ts as lin_ts, lin_ucb as lin_ucb
from jaxsac.bandits.stepwise.proof import prove_support as prove_support
from jaxsac.bandits.stepwise.sparse import (
    adaptive_greedy as adaptive_greedy,
    optimistic_greedy as optimistic_greedy,
)
from jaxsac.bandits.stepwise.thompson import thompson as thompson
