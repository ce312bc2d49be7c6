"""The penalty of the sparse policy of a log of numbers."""

import jax
import numpy as np
import pytest

from jaxsac import control
from jaxsac.route import evaluate
from jaxsac.route.sparse import fit_sparse


@pytest.mark.slow
def test_a_bound_on_the_tools_that_look_at_the_context():
    """Those that enter by their frequency alone do not count, and penalties above lam_max / 3 are
    tried.
    """
    random = np.random.default_rng(0)
    coef = random.normal(size=(8, 3)) * (np.arange(8) < 5)[:, None]

    def draw(size):
        contexts = random.normal(size=(size, 3))
        scores = contexts @ coef.T * 1.5 + random.gumbel(size=(size, 8))
        return contexts, np.argsort(-scores)[:, :2].astype(np.int32)

    task = control.Task(control.Log(*draw(200)), 8, 2, "imitation")
    contexts, used = draw(60)

    def quality(scores):
        return float(evaluate.log_likelihood(scores(contexts), used, 2).mean())

    given = jax.random.key(0), task, quality, "validation"
    free, few, loose = (fit_sparse(*given, keep, 1e-2) for keep in (None, 1, 8))
    assert free.penalised.support.size > 1
    assert few.penalised.support.size == few.scores.support.size == 1 < few.policy.kept.size
    assert few.certificate["lam"] > few.certificate["lam_max"] / 3
    assert loose.tried == free.tried and loose.certificate == free.certificate
