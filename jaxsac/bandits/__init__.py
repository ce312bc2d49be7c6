"""Sparse-action linear bandits: play at most s of d coordinates, and how much of each, from noisy
rewards.
"""

from jaxsac.bandits.engine.run import Run as Run
from jaxsac.bandits.estimate.exploration import exploration_basis as exploration_basis
from jaxsac.bandits.estimate.radii import error_radius as error_radius
from jaxsac.bandits.phased.apsee import apsee as apsee
from jaxsac.bandits.phased.apsee import apsee_greedy as apsee_greedy
from jaxsac.bandits.phased.apsee import stopping_time as stopping_time
from jaxsac.bandits.phased.commit import e2tc as e2tc
from jaxsac.bandits.phased.commit import estc as estc
from jaxsac.bandits.phased.commit import explore_then_commit as explore_then_commit
from jaxsac.bandits.phased.commit import phased_greedy as phased_greedy
from jaxsac.bandits.phased.schedule import Phased as Phased
from jaxsac.bandits.sets.action_set import ActionSet as ActionSet
from jaxsac.bandits.sets.action_set import Selection as Selection
from jaxsac.bandits.sets.composed import FromProjection as FromProjection
from jaxsac.bandits.sets.composed import FromSupport as FromSupport
from jaxsac.bandits.sets.composed import Masked as Masked
from jaxsac.bandits.sets.composed import Product as Product
from jaxsac.bandits.sets.ellipsoid import Ellipsoid as Ellipsoid
from jaxsac.bandits.sets.modular import Ball as Ball
from jaxsac.bandits.sets.modular import Box as Box
from jaxsac.bandits.sets.modular import CrossPolytope as CrossPolytope
from jaxsac.bandits.sets.modular import LpBall as LpBall
from jaxsac.bandits.sets.modular import Modular as Modular
from jaxsac.bandits.sets.modular import Simplex as Simplex
from jaxsac.bandits.sets.polytope import Polytope as Polytope
from jaxsac.bandits.sets.supports import best_support as best_support
from jaxsac.bandits.sets.supports import branch_and_bound as branch_and_bound
from jaxsac.bandits.sets.supports import greedy_support as greedy_support
from jaxsac.bandits.sets.supports import submodularity_ratio as submodularity_ratio
from jaxsac.bandits.simulation import simulate as simulate
from jaxsac.bandits.stepwise.arms import lin_ts as lin_ts
from jaxsac.bandits.stepwise.arms import lin_ucb as lin_ucb
from jaxsac.bandits.stepwise.sparse import adaptive_greedy as adaptive_greedy
from jaxsac.bandits.stepwise.sparse import optimistic_greedy as optimistic_greedy
