"""Sparse-action linear bandits: play at most s of d coordinates, and how much of each, from noisy
rewards.
"""

from jaxsac.bandits._protocol import ActionSet as ActionSet
from jaxsac.bandits._protocol import Selection as Selection
from jaxsac.bandits.algorithms import apsee as apsee
from jaxsac.bandits.algorithms import apsee_greedy as apsee_greedy
from jaxsac.bandits.algorithms import e2tc as e2tc
from jaxsac.bandits.algorithms import estc as estc
from jaxsac.bandits.algorithms import explore_then_commit as explore_then_commit
from jaxsac.bandits.algorithms import phased_greedy as phased_greedy
from jaxsac.bandits.algorithms import stopping_time as stopping_time
from jaxsac.bandits.composed_sets import FromProjection as FromProjection
from jaxsac.bandits.composed_sets import FromSupport as FromSupport
from jaxsac.bandits.composed_sets import Masked as Masked
from jaxsac.bandits.composed_sets import Product as Product
from jaxsac.bandits.ellipsoid import Ellipsoid as Ellipsoid
from jaxsac.bandits.exploration import exploration_basis as exploration_basis
from jaxsac.bandits.modular_sets import Ball as Ball
from jaxsac.bandits.modular_sets import Box as Box
from jaxsac.bandits.modular_sets import CrossPolytope as CrossPolytope
from jaxsac.bandits.modular_sets import LpBall as LpBall
from jaxsac.bandits.modular_sets import Simplex as Simplex
from jaxsac.bandits.oracles import best_support as best_support
from jaxsac.bandits.oracles import branch_and_bound as branch_and_bound
from jaxsac.bandits.oracles import greedy_support as greedy_support
from jaxsac.bandits.oracles import submodularity_ratio as submodularity_ratio
from jaxsac.bandits.phased import Phased as Phased
from jaxsac.bandits.polytope import Polytope as Polytope
from jaxsac.bandits.radii import error_radius as error_radius
from jaxsac.bandits.simulation import Run as Run
from jaxsac.bandits.simulation import simulate as simulate
from jaxsac.bandits.stepwise import adaptive_greedy as adaptive_greedy
from jaxsac.bandits.stepwise import lin_ts as lin_ts
from jaxsac.bandits.stepwise import lin_ucb as lin_ucb
from jaxsac.bandits.stepwise import optimistic_greedy as optimistic_greedy
