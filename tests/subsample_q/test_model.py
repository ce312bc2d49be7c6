import dataclasses

import jax
import numpy as np
import pytest
from subsample_q.models import random_arrays, random_model

from jaxsac import subsample_q as sq


def test_rows_are_checked_and_normalised():
    Pg, Pl, rg, rl = random_arrays(0)
    model = sq.Model(Pg, Pl * (1 + 5e-7), rg, rl, 0.9)
    np.testing.assert_allclose(np.asarray(model.local_transition).sum(-1), 1, atol=1e-15)
    wrong = Pl.copy()
    wrong[1, 2] *= 1.1
    with pytest.raises(ValueError, match=r"local_transition: row \(1, 2\) sums to 1.1"):
        sq.Model(Pg, wrong, rg, rl, 0.9)
    wrong = Pg.copy()
    wrong[0, 0] = [1.5, -0.5, 0]
    with pytest.raises(ValueError, match=r"global_transition must be ≥ 0 everywhere, got -0\.5"):
        sq.Model(wrong, Pl, rg, rl, 0.9)
    with pytest.raises(ValueError, match="global_reward has a NaN"):
        sq.Model(Pg, Pl, rg * np.nan, rl, 0.9)


@pytest.mark.parametrize(
    "discount,match", [(-0.1, "discount must be ≥ 0"), (1.5, "discount must be ≤ 1")]
)
def test_discount_is_checked(discount, match):
    with pytest.raises(ValueError, match=match):
        sq.Model(*random_arrays(0), discount)


def test_shapes_and_dtypes_are_checked():
    Pg, Pl, rg, rl = random_arrays(0)
    with pytest.raises(ValueError, match="local_reward must have shape"):
        sq.Model(Pg, Pl, rg, rl[:, :2], 0.9)
    with pytest.raises(ValueError, match="local_transition has dtype float32"):
        sq.Model(Pg, Pl.astype(np.float32), rg, rl, 0.9)
    with pytest.raises(ValueError, match=r"needs local_transition \[G, A, L, L\]"):
        sq.Model(Pg, Pl, rg, np.repeat(rl[:, None], 2, 1), 0.9)
    with pytest.raises(ValueError, match="empty axis"):
        sq.Model(np.zeros((3, 0, 3)), Pl, np.zeros((3, 0)), rl, 0.9)


def test_a_model_is_a_pytree():
    model = random_model(0)
    assert len(jax.tree.leaves(model)) == 5
    assert float(dataclasses.replace(model, discount=0.5).discount) == 0.5
    with pytest.raises(ValueError, match="criterion='average'"):
        sq.solve(dataclasses.replace(model, discount=1.0), 2)
