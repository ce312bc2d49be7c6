"""Losses by their names."""

from jaxsac import _checks
from jaxsac.losses.classification import Logistic, Multinomial
from jaxsac.losses.protocol import Loss
from jaxsac.losses.regression import Huber, Poisson, Squared, SquareRoot

_BY_NAME = {
    "squared": Squared,
    "logistic": Logistic,
    "huber": Huber,
    "sqrt": SquareRoot,
    "poisson": Poisson,
    "multinomial": Multinomial,
}


def resolve(loss: str | Loss) -> Loss:
    """The loss of that name, or `loss` itself; ValueError for an unknown name."""
    if isinstance(loss, Loss):
        return loss
    known = isinstance(loss, str) and loss in _BY_NAME
    _checks.require(
        known,
        f"loss must be one of {', '.join(map(repr, _BY_NAME))} or a losses.Loss (such as"
        f" budgeted_gibbs(budget)), got {loss!r}.",
    )
    return _BY_NAME[loss]()
