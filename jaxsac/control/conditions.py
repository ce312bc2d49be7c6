"""When a sparse fit can be trusted: the conditions of the theory, as numbers."""

from jaxsac.control.trust.conditions import (
    irrepresentability as irrepresentability,
    restricted_curvature as restricted_curvature,
    signal_threshold as signal_threshold,
)
from jaxsac.control.trust.witness import Witness as Witness, oracle_witness as oracle_witness
