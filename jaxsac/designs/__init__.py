"""Designs: linear maps from coefficients to predictions that build no matrix they do not need."""

from jaxsac.designs.maps import (
    BudgetedChoice as BudgetedChoice,
    Centred as Centred,
    Dense as Dense,
    Design as Design,
    MultiOutput as MultiOutput,
    as_design as as_design,
)
