"""Smooth convex losses of linear predictions, by name or as a `Loss` of your own."""

from jaxsac.losses.classification import (
    BudgetedGibbs as BudgetedGibbs,
    Logistic as Logistic,
    Multinomial as Multinomial,
)
from jaxsac.losses.names import resolve as resolve
from jaxsac.losses.protocol import Loss as Loss
from jaxsac.losses.regression import (
    Huber as Huber,
    Poisson as Poisson,
    Squared as Squared,
    SquareRoot as SquareRoot,
)
