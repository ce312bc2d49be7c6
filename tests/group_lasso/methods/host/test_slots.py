"""The slots of a working set: columns and models as sets change, sizes, products, and memory that
nobody has emptied.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wide import EQUAL, G, T, problem

from jaxsac import Groups, group_lasso
from jaxsac.group_lasso.methods.host import check as host_check, slots


@pytest.mark.parametrize("intercept", [False, True], ids=["", "intercept"])
def test_groups_come_and_go_in_their_slots(intercept, monkeypatch):
    """However the set changes, each slot holds the columns of its group, and their model; what
    stays does not move, also in a new store.
    """
    monkeypatch.setattr(slots, "_ROOM", 40)
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    at = group_lasso.Problem(
        X, y, EQUAL, "squared", jnp.ones(G).at[jnp.asarray([3, 17])].set(0), None, None, intercept
    ).at(1.0)
    setup, _ = host_check.set_up(at, 1e-6)
    rng = np.random.default_rng(0)
    free = np.asarray([3, 17], np.int32)
    root = rng.uniform(0.5, 1.5, size=T)
    chosen = slots.working_set(
        setup, np.concatenate([free, np.setdiff1d(np.arange(30, dtype=np.int32), free)])
    )
    chosen = slots.modelled(chosen, root)
    columns = np.asarray(X).T.reshape(G, 4, T)
    scaled = (
        (columns - intercept * (columns @ root**2)[:, :, None] / np.sum(root**2))
        * root
        / setup.unit
    )
    for num_members in (32, 32, 40, 60, 24, 30):
        stay = rng.choice(chosen.groups[chosen.used], 20, replace=False)
        members = np.concatenate(
            [free, stay, rng.choice(np.arange(500, G), num_members - 20, replace=False)]
        ).astype(np.int32)
        before, chosen = chosen.groups, slots.exchanged(setup, chosen, np.unique(members))
        assert set(chosen.groups[chosen.used]) == set(members) and chosen.used.sum() == len(
            set(members)
        )
        assert list(chosen.groups[:2]) == [3, 17]  # what is unpenalised stays first
        kept = np.isin(before, members) & (before >= 0)
        np.testing.assert_array_equal(chosen.groups[: len(before)][kept], before[kept])
        used = chosen.used
        np.testing.assert_array_equal(chosen.blocks[used], columns[chosen.groups[used]])
        wanted = used & (rng.uniform(size=len(used)) < 0.7)
        slots.make(setup, chosen, wanted)
        assert np.all(chosen.store.made[: len(used)][wanted])
        made = used & chosen.store.made[: len(used)]
        np.testing.assert_allclose(
            chosen.scaled[made], scaled[chosen.groups[made]], rtol=1e-6, atol=1e-6
        )
        exact = np.einsum("gat,gbt->gab", *[scaled[chosen.groups[made]]] * 2)
        np.testing.assert_allclose(
            chosen.store.grams[: len(used)][made], exact, rtol=1e-5, atol=1e-4
        )
        bounds, largest = chosen.store.bounds[: len(used)][made], np.linalg.eigvalsh(exact)[:, -1]
        assert np.all(bounds >= largest * (1 - 1e-5)) and np.all(
            bounds <= largest * 4 ** (1 / 64) * (1 + 1e-5)
        )
        assert not np.any(chosen.blocks[~used]) and not np.any(chosen.scaled[~used])
        np.testing.assert_array_equal(chosen.rows[used], setup.rows[chosen.groups[used]])
        assert np.all(chosen.rows[~used] == EQUAL.num_coefficients)
        # What compiled functions see is not copied: it begins where they want it to.
        assert all(
            array.ctypes.data % 64 == 0 and len(array) >= len(used)
            for array in slots.visited(chosen)
        )
    assert len(chosen.store.blocks) > 40
    assert not np.any(slots.modelled(chosen, root).store.made)


def test_columns_of_groups_of_several_sizes():
    """Padded columns are zeros, whatever was in the slot; more records than are gathered
    together.
    """
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(600, 520)), Groups.from_sizes([1, 3, 2, 4] * 52)
    setup, _ = host_check.set_up(
        group_lasso.Problem(
            jnp.asarray(X), jnp.ones(600), groups, "squared", None, None, None, False
        ).at(1.0),
        1e-6,
    )
    chosen = slots.exchanged(
        setup,
        slots.working_set(setup, np.asarray([3, 7, 11], np.int32)),
        np.asarray([0, 5, 11], np.int32),
    )
    padded = np.append(X, np.zeros((600, 1)), axis=1)
    np.testing.assert_array_equal(
        chosen.blocks, padded.T[np.asarray(groups.members)[chosen.groups]]
    )


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_what_memory_held_before_does_not_matter(loss, monkeypatch):
    """Slots get memory that nobody has emptied: with NaN in it the answers are the same, bit for
    bit.
    """
    X, y, _ = problem(0, loss, EQUAL, jnp.float64)
    keywords = {"loss": loss, "num_lams": 4, "min_ratio": 0.2}
    clean = group_lasso.path(X, y, EQUAL, **keywords)
    empty = np.empty

    def used_before(shape, dtype=float, **others):
        array = empty(shape, dtype, **others)
        array.fill(np.nan if np.issubdtype(dtype, np.floating) else 255)  # bytes of 255 are NaN too
        return array

    monkeypatch.setattr(slots, "_ROOM", 40)  # so that stores are made anew
    monkeypatch.setattr(np, "empty", used_before)
    found = group_lasso.path(X, y, EQUAL, **keywords)
    setup, place = host_check.set_up(
        group_lasso.Problem(X, y, EQUAL, loss, None, None, None, False).at(1.0), 1e-6
    )
    chosen = place.set
    for members in ([3, 7, 11], [7, 8], np.arange(60)):
        chosen = slots.exchanged(setup, chosen, np.asarray(members, np.int32))
        assert (
            np.isfinite(chosen.blocks).all() and np.isfinite(chosen.scaled).all()
        )  # also where no model is made
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, found, clean)


@pytest.mark.parametrize("num_nonzero", [0, 3, 25])
def test_sums_and_products_of_blocks(num_nonzero):
    rng = np.random.default_rng(0)
    blocks, coef = rng.normal(size=(30, 4, 50)), rng.normal(size=(2, 30, 4))
    coef[:, rng.permutation(30)[num_nonzero:]] = 0
    np.testing.assert_allclose(
        slots.combined(blocks, coef), np.einsum("bgq,gqt->bt", coef, blocks), atol=1e-12
    )
    np.testing.assert_allclose(
        slots.combined(blocks, coef[0]), np.einsum("gq,gqt->t", coef[0], blocks), atol=1e-12
    )
    vector = rng.normal(size=50)
    np.testing.assert_allclose(slots.products(blocks, vector), blocks @ vector, atol=1e-12)


def test_sizes_of_sets():
    """Each holds the groups asked for, not many more, and none is above the number of groups."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    setup, _ = host_check.set_up(
        group_lasso.Problem(X, y, EQUAL, "squared", None, None, None, False).at(1.0), 1e-6
    )
    tall = setup._replace(rows=np.zeros((G, 1 << 10), np.int32))
    for at, smallest in ((setup, 32), (tall, 8)):
        sizes = [slots.capacity(at, count) for count in range(1, G + 1)]
        assert all(
            count <= size <= max(smallest, 1.5 * count) for count, size in enumerate(sizes, 1)
        )
        assert sizes[0] == smallest and sizes[-1] == G and len(set(sizes)) <= 14
