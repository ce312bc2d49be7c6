"""Losses by their names."""

from jaxsac._arguments import arguments, choice, either, record
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
LOSS = either(choice(*_BY_NAME), record(Loss))


@arguments(loss=LOSS)
def resolve(loss: str | Loss) -> Loss:
    """The loss of that name, or `loss` itself; ValueError for an unknown name."""
    return loss if isinstance(loss, Loss) else _BY_NAME[loss]()
