"""When a sparse fit can be trusted: the conditions of the theory, as numbers."""

from jaxsac.control.trust.conditions import (
    Witness as Witness,
    irrepresentability as irrepresentability,
    oracle_witness as oracle_witness,
    restricted_curvature as restricted_curvature,
    signal_threshold as signal_threshold,
)
