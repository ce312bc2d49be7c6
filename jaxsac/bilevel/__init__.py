"""Bilevel optimisation with first-order penalties: minimise upper(x, y*(x)), y*(x) = arg min_y
lower(x, y), from gradients alone.

A perturbed copy of the lower level is compared with an unperturbed one: their difference over σ is
the hypergradient. Both copies share starts, steps and batches, so that what they have in common
cancels, and the difference is stored, so that float32 keeps its digits. Reinforcement learning is
in `bilevel.rl`. Source: Gaur, Bedi, Wang, Aggarwal, "On the Sample Complexity Bounds in Bilevel
Reinforcement Learning", arXiv 2503.17644 (its first version states a sample complexity of ε⁻⁴, the
later ones about ε⁻³).
"""

from jaxsac.bilevel import rl as rl
from jaxsac.bilevel.argmin import Argmin as Argmin, argmin as argmin
from jaxsac.bilevel.certificate import Diagnostics as Diagnostics
from jaxsac.bilevel.hypergradient import (
    HypergradientCheck as HypergradientCheck,
    check_hypergradient as check_hypergradient,
    hypergradient as hypergradient,
)
from jaxsac.bilevel.method import Method as Method, State as State
from jaxsac.bilevel.outer_step import diagnose as diagnose, init as init, step as step
from jaxsac.bilevel.paired import PairedOptimizer as PairedOptimizer, paired_adam as paired_adam
from jaxsac.bilevel.problem import Problem as Problem
from jaxsac.bilevel.solver import Bilevel as Bilevel, solve as solve
