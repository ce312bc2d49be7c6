"""The host-driven method against the compiled one: the same answer, the same certificate, whatever is weighted, shifted or unpenalised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxsac import Groups, Status, designs, group_lasso, losses
from jaxsac.group_lasso import compiled_working_set, homotopy, host_check, host_loss, host_steps, rounds, slots, solver, working_set
from jaxsac.group_lasso.quadratic import Point, best_step

T, G = 64, 1100
EQUAL = Groups.equal(G, 4)
UNEQUAL = Groups.from_sizes([1 + (g % 5) for g in range(G + 280)])


def problem(seed, loss, groups, dtype):
    rng = np.random.default_rng(seed)
    p = groups.num_coefficients
    X = rng.normal(size=(T, p)) + 0.7 * rng.normal(size=(T, 1)) + rng.uniform(0, 1, size=p)
    score = X[:, :25] @ rng.normal(size=25)
    score = (score - score.mean()) / score.std()
    y = 3 * score + rng.normal(size=T) + 1
    if loss == "logistic":
        y = np.where(rng.uniform(size=T) < 1 / (1 + np.exp(-2 * score)), 1.0, -1.0)
    sample_weight = rng.uniform(0.5, 1.5, T)
    sample_weight[:2] = 0
    weights = rng.uniform(0.5, 2, groups.num_groups)
    weights[[3, 17]] = 0
    everything = {"weights": weights, "sample_weight": sample_weight, "offset": 0.3 * rng.normal(size=T)}
    return jnp.asarray(X, dtype), jnp.asarray(y, dtype), {k: jnp.asarray(v, dtype) for k, v in everything.items()}


SETTINGS = [
    pytest.param("squared", EQUAL, False, jnp.float64, id="squared"),
    pytest.param("logistic", UNEQUAL, True, jnp.float64, id="logistic, everything, unequal groups", marks=pytest.mark.slow),
    pytest.param("squared", UNEQUAL, True, jnp.float64, id="squared, everything, unequal groups", marks=pytest.mark.slow),
    pytest.param("squared", EQUAL, False, jnp.float32, id="squared, float32"),
    pytest.param("huber", EQUAL, True, jnp.float64, id="huber, everything", marks=pytest.mark.slow),
    pytest.param("poisson", EQUAL, True, jnp.float64, id="poisson, everything", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("loss, groups, everything, dtype", SETTINGS)
def test_the_answer_is_that_of_the_compiled_loop(loss, groups, everything, dtype):
    X, y, more = problem(0, loss if loss != "poisson" else "logistic", groups, dtype)
    if loss == "poisson":
        y = jnp.abs(y + 1)
    keywords = {"loss": loss, "intercept": True, **more} if everything else {"loss": loss}
    largest = group_lasso.lam_max(X, y, groups, **keywords)
    tol = 1e-4 if dtype == jnp.float32 else 1e-7
    for ratio in (0.5, 0.2):
        keywords["tol"] = tol
        host = group_lasso.solve(X, y, groups, ratio * largest, **keywords).check()
        compiled = compiled_solve(X, y, groups, ratio * largest, **keywords).check()
        assert jax.tree.structure(host) == jax.tree.structure(compiled)
        assert [leaf.dtype for leaf in jax.tree.leaves(host)] == [leaf.dtype for leaf in jax.tree.leaves(compiled)]
        assert [leaf.shape for leaf in jax.tree.leaves(host)] == [leaf.shape for leaf in jax.tree.leaves(compiled)]
        scale = compiled.stats["scale"]
        np.testing.assert_allclose(host.stats["scale"], scale, rtol=1e-6 if dtype == jnp.float32 else 1e-12)
        assert abs(host.stats["objective"] - compiled.stats["objective"]) <= tol * scale
        # passes, not steps: the compiled loop takes hundreds
        assert host.stats["num_steps"] <= 15 and 0 < host.stats["num_active"] < groups.num_groups // 4
        # the certificate of the compiled loop, asked about this answer
        again = compiled_solve(X, y, groups, ratio * largest, **keywords, max_steps=0, state=host.state)
        assert again.status == Status.CONVERGED
        np.testing.assert_allclose(again.stats["objective"], host.stats["objective"], rtol=1e-5 if dtype == jnp.float32 else 1e-12)
        assert group_lasso.solve(X, y, groups, ratio * largest, **keywords, state=compiled.state).stats["num_steps"] <= 3


def compiled_solve(X, y, groups, lam, *, loss, tol, state=None, max_steps=20_000, intercept=False, **arrays):
    at = solver._problem(X, y, groups, lam, loss, arrays.get("weights"), arrays.get("sample_weight"), arrays.get("offset"), intercept)
    return solver._solve(at, jnp.asarray(tol, X.dtype), jnp.int32(max_steps), state)


def test_every_way_to_end():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y, EQUAL)
    above = group_lasso.solve(X, y, EQUAL, 1.001 * largest).check()
    assert above.stats["num_steps"] == 0 and not np.any(above.value.coef)
    short = group_lasso.solve(X, y, EQUAL, 0.1 * largest, max_steps=1)
    assert short.status == Status.MAX_STEPS and short.stats["gap"] > 1e-6 * short.stats["scale"]
    for bad in (X.at[3, 2].set(jnp.nan), X.at[3, 2].set(jnp.inf)):
        assert group_lasso.solve(bad, y, EQUAL, 0.1 * largest).status == Status.NONFINITE
    stalled = group_lasso.solve(X, y, EQUAL, 0.1 * largest, tol=1e-18)
    assert stalled.status == Status.STALLED and stalled.stats["gap"] < 1e-9 * stalled.stats["scale"]


def test_units_do_not_matter():
    X, y, _ = problem(1, "squared", EQUAL, jnp.float64)
    lam = 0.1 * group_lasso.lam_max(X, y, EQUAL)
    base = group_lasso.solve(X, y, EQUAL, lam).check()
    for of_X, of_y in ((1e60, 1e-60), (1e-60, 1e40)):
        scaled = group_lasso.solve(of_X * X, of_y * y, EQUAL, of_X * of_y * lam).check()
        np.testing.assert_allclose(scaled.value.coef * (of_X / of_y), base.value.coef, atol=1e-4)
        # Units that are no powers of two round otherwise: a gap at the edge of the tolerance may take one pass more.
        assert abs(int(scaled.stats["num_steps"]) - int(base.stats["num_steps"])) <= 1


@pytest.mark.parametrize("intercept", [False, True], ids=["", "intercept"])
def test_groups_come_and_go_in_their_slots(intercept, monkeypatch):
    """However the set changes, each slot holds the columns of its group, and their model; what stays does not move, also in a new store."""
    monkeypatch.setattr(slots, "_ROOM", 40)
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    at = solver._problem(X, y, EQUAL, 1.0, "squared", jnp.ones(G).at[jnp.asarray([3, 17])].set(0), None, None, intercept)
    setup, _ = host_check.set_up(at, 1e-6)
    rng = np.random.default_rng(0)
    free = np.asarray([3, 17], np.int32)
    root = rng.uniform(0.5, 1.5, size=T)
    chosen = slots.working_set(setup, np.concatenate([free, np.setdiff1d(np.arange(30, dtype=np.int32), free)]))
    chosen = slots.modelled(chosen, root)
    columns = np.asarray(X).T.reshape(G, 4, T)
    scaled = (columns - intercept * (columns @ root**2)[:, :, None] / np.sum(root**2)) * root / setup.unit
    for num_members in (32, 32, 40, 60, 24, 30):
        stay = rng.choice(chosen.groups[chosen.used], 20, replace=False)
        members = np.concatenate([free, stay, rng.choice(np.arange(500, G), num_members - 20, replace=False)]).astype(np.int32)
        before, chosen = chosen.groups, slots.exchanged(setup, chosen, np.unique(members))
        assert set(chosen.groups[chosen.used]) == set(members) and chosen.used.sum() == len(set(members))
        assert list(chosen.groups[:2]) == [3, 17]  # what is unpenalised stays first
        kept = np.isin(before, members) & (before >= 0)
        np.testing.assert_array_equal(chosen.groups[: len(before)][kept], before[kept])
        used = chosen.used
        np.testing.assert_array_equal(chosen.blocks[used], columns[chosen.groups[used]])
        wanted = used & (rng.uniform(size=len(used)) < 0.7)
        slots.make(setup, chosen, wanted)
        assert np.all(chosen.store.made[: len(used)][wanted])
        made = used & chosen.store.made[: len(used)]
        np.testing.assert_allclose(chosen.scaled[made], scaled[chosen.groups[made]], rtol=1e-6, atol=1e-6)
        exact = np.einsum("gat,gbt->gab", *[scaled[chosen.groups[made]]] * 2)
        np.testing.assert_allclose(chosen.store.grams[: len(used)][made], exact, rtol=1e-5, atol=1e-4)
        bounds, largest = chosen.store.bounds[: len(used)][made], np.linalg.eigvalsh(exact)[:, -1]
        assert np.all(bounds >= largest * (1 - 1e-5)) and np.all(bounds <= largest * 4 ** (1 / 64) * (1 + 1e-5))
        assert not np.any(chosen.blocks[~used]) and not np.any(chosen.scaled[~used])
        np.testing.assert_array_equal(chosen.rows[used], setup.rows[chosen.groups[used]])
        assert np.all(chosen.rows[~used] == EQUAL.num_coefficients)
        # What compiled functions see is not copied: it begins where they want it to.
        assert all(array.ctypes.data % 64 == 0 and len(array) >= len(used) for array in slots.visited(chosen))
    assert len(chosen.store.blocks) > 40
    assert not np.any(slots.modelled(chosen, root).store.made)


def test_columns_of_groups_of_several_sizes():
    """Padded columns are zeros, whatever was in the slot; more records than are gathered together."""
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(600, 520)), Groups.from_sizes([1, 3, 2, 4] * 52)
    setup, _ = host_check.set_up(solver._problem(jnp.asarray(X), jnp.ones(600), groups, 1.0, "squared", None, None, None, False), 1e-6)
    chosen = slots.exchanged(setup, slots.working_set(setup, np.asarray([3, 7, 11], np.int32)), np.asarray([0, 5, 11], np.int32))
    padded = np.append(X, np.zeros((600, 1)), axis=1)
    np.testing.assert_array_equal(chosen.blocks, padded.T[np.asarray(groups.members)[chosen.groups]])


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32], ids=["float64", "float32"])
def test_the_squared_loss_without_a_program(dtype):
    """ρ, h^½ and the objective along a step in NumPy are those of the compiled pieces, with weights of 0, an offset and an intercept."""
    X, y, more = problem(0, "squared", EQUAL, dtype)
    at = solver._problem(X, y, EQUAL, 1.0, "squared", None, more["sample_weight"], more["offset"], True)
    rng = np.random.default_rng(1)
    predictions, moved = rng.normal(size=(2, T)).astype(dtype)
    slope, root = host_loss.residual(at, predictions), host_loss.roots(at, predictions, 1e-3)
    values = host_loss.values_along(at, root, slope, predictions, moved)
    assert [type(found) for found in (slope, root, values)] == [np.ndarray] * 3
    assert slope.dtype == root.dtype == values.dtype == dtype
    rtol = 10 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(slope, rounds.residual(at, predictions), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(root, rounds.roots(at, predictions, np.asarray(1e-3, dtype)), rtol=rtol)
    np.testing.assert_allclose(values, rounds.values_along(at, predictions, moved), rtol=10 * rtol)


def test_where_all_that_violate_are_taken_one_round_does():
    """A set that needs no other groups is solved to the tolerance at once: one pass over X after that of the null model."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    sol = group_lasso.solve(X, y, EQUAL, 0.9 * group_lasso.lam_max(X, y, EQUAL), tol=1e-8).check()
    assert sol.stats["num_active"] >= 1 and sol.stats["num_steps"] == 1


def test_sets_that_are_likely_to_do():
    """All that are beyond their thresholds, or four times as many as are not zero; an unpenalised group, always beyond its own of 0, is inside."""
    X, y, more = problem(0, "squared", EQUAL, jnp.float64)
    setup, _ = host_check.set_up(solver._problem(X, y, EQUAL, 1.0, "squared", more["weights"], None, None, False), 1e-6)
    chosen = slots.working_set(setup, np.asarray([3, 17, 5, 6, 7, 8], np.int32))
    beyond, coef = np.zeros(G, bool), np.zeros((4, 4))
    beyond[[3, 17, 6]] = True
    coef[:2] = 1
    assert host_steps._complete(chosen, beyond, coef)
    beyond[20] = True
    assert not host_steps._complete(chosen, beyond, coef)
    coef[1] = 0
    assert host_steps._complete(chosen, beyond, coef)


def test_a_loss_made_of_another_is_not_taken_for_it():
    class Quartic(losses.Squared):
        def per_sample(self, z, y):
            return 0.25 * (y - z) ** 4 + 0.5 * (y - z) ** 2

        def descent(self, z, y):
            return (y - z) ** 3 + (y - z)

        curvature = None
        dual_per_sample, dual_scale = losses.Loss.dual_per_sample, losses.Loss.dual_scale

    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    loss = Quartic()
    assert losses.Squared().quadratic and not loss.quadratic
    lam = 0.3 * group_lasso.lam_max(X, y, EQUAL, loss=loss)
    host = group_lasso.solve(X, y, EQUAL, lam, loss=loss).check()
    compiled = compiled_solve(X, y, EQUAL, lam, loss=loss, tol=1e-6).check()
    np.testing.assert_allclose(host.stats["objective"], compiled.stats["objective"], atol=2e-6 * float(host.stats["scale"]))


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_what_memory_held_before_does_not_matter(loss, monkeypatch):
    """Slots get memory that nobody has emptied: with NaN in it the answers are the same, bit for bit."""
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
    setup, place = host_check.set_up(solver._problem(X, y, EQUAL, 1.0, loss, None, None, None, False), 1e-6)
    chosen = place.set
    for members in ([3, 7, 11], [7, 8], np.arange(60)):
        chosen = slots.exchanged(setup, chosen, np.asarray(members, np.int32))
        assert np.isfinite(chosen.blocks).all() and np.isfinite(chosen.scaled).all()  # also where no model is made
    monkeypatch.undo()
    jax.tree.map(np.testing.assert_array_equal, found, clean)


@pytest.mark.parametrize("num_nonzero", [0, 3, 25])
def test_sums_and_products_of_blocks(num_nonzero):
    rng = np.random.default_rng(0)
    blocks, coef = rng.normal(size=(30, 4, 50)), rng.normal(size=(2, 30, 4))
    coef[:, rng.permutation(30)[num_nonzero:]] = 0
    np.testing.assert_allclose(slots.combined(blocks, coef), np.einsum("bgq,gqt->bt", coef, blocks), atol=1e-12)
    np.testing.assert_allclose(slots.combined(blocks, coef[0]), np.einsum("gq,gqt->t", coef[0], blocks), atol=1e-12)
    vector = rng.normal(size=50)
    np.testing.assert_allclose(slots.products(blocks, vector), blocks @ vector, atol=1e-12)


def test_what_is_certified_is_what_is_returned():
    """Whatever an empty slot holds."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    setup, place = host_check.set_up(solver._problem(X, y, EQUAL, 1.0, "squared", None, None, None, False), 1e-6)
    chosen = slots.working_set(setup, np.arange(30, dtype=np.int32))
    groups = np.where(np.arange(30) % 3 == 0, -1, chosen.groups).astype(np.int32)
    chosen = chosen._replace(groups=groups, rows=slots.rows_of(setup, groups))
    point = place.point._replace(coef=np.ones((30, 4)))
    checked = host_check.check(setup, np.asarray(1.0), chosen, point)
    coef = slots.full(setup, chosen, checked.point.coef)[:-1]
    assert np.sum(coef != 0) == 4 * np.sum(groups >= 0)
    objective = 0.5 * np.mean((np.asarray(y) - np.asarray(X) @ coef) ** 2) + np.linalg.norm(coef.reshape(G, 4), axis=1).sum()
    np.testing.assert_allclose(checked.check.objective, objective, rtol=1e-12)


@pytest.mark.parametrize("loss", ["squared", pytest.param("logistic", marks=pytest.mark.slow)])
def test_violations_are_those_of_all_coefficients(loss):
    """The host's figure, from the groups that are not zero, against the one that the compiled loop computes."""
    X, y, more = problem(0, loss, UNEQUAL, jnp.float64)
    lam = 0.3 * group_lasso.lam_max(X, y, UNEQUAL, loss=loss, intercept=True, **more)
    keywords = {"loss": loss, "intercept": True, "tol": 1e-6, **more}
    short = group_lasso.solve(X, y, UNEQUAL, lam, max_steps=1, **keywords)
    again = compiled_solve(X, y, UNEQUAL, lam, max_steps=0, state=short.state, **keywords)
    np.testing.assert_allclose(short.stats["kkt"], again.stats["kkt"], rtol=1e-6)
    for name in ("gap", "rounding"):
        np.testing.assert_allclose(short.stats[name], again.stats[name], rtol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_first_pass(loss):
    """Sizes of columns and the gradient of the centred design, over a number of records that is no multiple of what is read together."""
    X, y, more = problem(0, loss, EQUAL, jnp.float64)
    X, y, records = X[:61], y[:61], more["sample_weight"][:61]
    at = solver._problem(X, y, EQUAL, 1.0, loss, None, records, more["offset"][:61], True)
    predictions = jnp.asarray(np.random.default_rng(3).normal(size=(1, 61)))
    columns, gradient = rounds.first_pass(at, predictions)
    A, c = np.asarray(X), np.asarray(records)
    np.testing.assert_allclose(columns, np.sqrt(c @ A**2), rtol=1e-12)
    residual = np.asarray(at.residual(predictions[0]))
    expected = (A - (c @ A) / c.sum()).T @ residual
    np.testing.assert_allclose(gradient[0], expected, atol=1e-12)
    np.testing.assert_allclose(rounds.gradients(at, predictions)[0], expected, atol=1e-12)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_start_that_has_to_become_nothing(loss):
    """Steps on an empty support: from coefficients above lam_max, on a rising path, and just below lam_max to a fine tolerance."""
    X, y, _ = problem(0, loss, EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y, EQUAL, loss=loss)
    start = group_lasso.solve(X, y, EQUAL, 0.5 * largest, loss=loss)
    above = group_lasso.solve(X, y, EQUAL, 1.5 * largest, loss=loss, state=start.state).check()
    rising = group_lasso.path(X, y, EQUAL, lams=jnp.asarray([0.5, 1.5, 1.2, 0.5]) * largest, loss=loss).check()
    assert not np.any(above.value.coef) and not np.any(rising.value.coef[1:3])
    np.testing.assert_allclose(rising.stats["objective"][3], start.stats["objective"], rtol=2e-6)
    group_lasso.solve(X, y, EQUAL, largest * (1 - 1e-5), loss=loss, tol=1e-10).check()


@pytest.mark.parametrize("ratio", [0.3, 0.03])
def test_no_false_convergence_in_any_units(ratio):
    """Coefficients whose squares underflow in float32, judged in float64 numpy."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float32)
    X, y = 1e10 * X, 1e-13 * y
    lam = ratio * group_lasso.lam_max(X, y, EQUAL)
    sol = group_lasso.solve(X, y, EQUAL, lam, tol=1e-5)
    A, b, target, lam = (np.asarray(a, np.float64) for a in (X, sol.value.coef, y, lam))
    rho = (target - A @ b) / T
    objective = 0.5 * T * rho @ rho + lam * np.linalg.norm(b.reshape(G, 4), axis=1).sum()
    shrink = min(1.0, lam / np.linalg.norm((rho @ A).reshape(G, 4), axis=1).max())
    gap = objective - shrink * (rho @ target) + 0.5 * T * shrink**2 * (rho @ rho)
    claimed, scale = float(sol.stats["gap"] + sol.stats["rounding"]), float(sol.stats["scale"])
    assert np.any(b) and sol.stats["kkt"] > 0
    assert gap <= claimed and (sol.status != Status.CONVERGED or claimed <= 1e-5 * (1 + 1e-6) * scale), (gap / scale, claimed / scale)


def test_an_intercept_that_is_not_asked_for_is_not_returned():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    lam = 0.3 * group_lasso.lam_max(X, y, EQUAL)
    with_one = group_lasso.solve(X, y, EQUAL, lam, intercept=True)
    for solve in (group_lasso.solve, jax.jit(group_lasso.solve)):
        without = solve(X, y, EQUAL, lam, state=with_one.state)
        assert without.status == Status.CONVERGED and without.value.intercept == 0 and without.stats["num_steps"] <= 1000


def test_without_a_penalty_nothing_is_certified_at_zero():
    """A tall problem, of few enough columns to be refitted if they were unpenalised by weight."""
    rng = np.random.default_rng(7)
    X, noise = rng.normal(size=(1200, 240)), rng.normal(size=1200)
    y = X @ rng.normal(size=240) + noise
    sol = group_lasso.solve(jnp.asarray(X), jnp.asarray(y), Groups.equal(24, 10), 0.0, tol=1e-8).check()
    least = np.linalg.lstsq(X, y)[1][0] / 2400
    assert least <= sol.stats["objective"] <= least + 1e-8 * sol.stats["scale"]
    again = group_lasso.path(jnp.asarray(X), jnp.asarray(y), Groups.equal(24, 10), lams=jnp.asarray([0.1, 0.0]), tol=1e-8).check()
    assert again.stats["objective"][1] <= least + 1e-8 * sol.stats["scale"]


def test_a_step_that_is_not_finite_is_not_taken():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    at = solver._problem(X, y, EQUAL, 1.0, "squared", None, None, None, True)
    point = Point(np.ones((5, 4)), np.asarray(0.3), np.arange(float(T)))
    direction, moved = np.ones((5, 4)), np.ones(T)
    direction[2, 1] = np.nan
    step = np.ones(T), np.ones(5), point
    taken = compiled_working_set.advance(at, *jax.tree.map(jnp.asarray, (*step, direction, moved)))
    jax.tree.map(np.testing.assert_array_equal, taken, point)
    setup, _ = host_check.set_up(at, 1e-6)
    slope = np.asarray(at.residual(jnp.asarray(point.predictions)))
    jax.tree.map(np.testing.assert_array_equal, host_steps._advance(setup, *step, slope, direction, moved), point)


def test_a_step_within_the_noise_of_its_objective_is_taken_whole():
    values = np.asarray([1 + 1e-8, 1, 1, 1, 1, 1 + 1e-9])
    assert best_step(values, 1e-7) == (1.0, False) and best_step(values) == (0.5, False)
    assert best_step(np.asarray([2.0, 1 + 1e-6, 1 + 1e-6, 2.0, 2.0, 1.0]), 1e-7) == (0.0, True)
    single = np.asarray([1 + 2e-7, 1, 1, 1, 1, 1], np.float32)  # a rounding apart
    assert best_step(single) == best_step(single, 1e-9) == (1.0, False)


def test_the_scale_is_the_null_objective_whoever_asks():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y + 10, EQUAL, intercept=True)
    for ratio, most in ((1.001, 100), (0.5, 0), (0.5, 100)):
        sol = group_lasso.solve(X, y + 10, EQUAL, ratio * largest, intercept=True, max_steps=most)
        np.testing.assert_allclose(sol.stats["scale"], 0.5 * np.var(np.asarray(y)), rtol=1e-12)
    still = group_lasso.path(X, y + 10, EQUAL, num_lams=3, intercept=True, max_steps=0)
    assert not np.any(still.stats["num_steps"]) and not np.any(still.value.coef)
    assert list(still.status) == [Status.CONVERGED, Status.MAX_STEPS, Status.MAX_STEPS]


def test_sizes_of_sets():
    """Each holds the groups asked for, not many more, and none is above the number of groups."""
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)
    setup, _ = host_check.set_up(solver._problem(X, y, EQUAL, 1.0, "squared", None, None, None, False), 1e-6)
    tall = setup._replace(rows=np.zeros((G, 1 << 10), np.int32))
    for at, smallest in ((setup, 32), (tall, 8)):
        sizes = [slots.capacity(at, count) for count in range(1, G + 1)]
        assert all(count <= size <= max(smallest, 1.5 * count) for count, size in enumerate(sizes, 1))
        assert sizes[0] == smallest and sizes[-1] == G and len(set(sizes)) <= 14


def test_what_is_covered():
    X, y, _ = problem(0, "squared", EQUAL, jnp.float64)

    def covered(X, groups, lam=0.1, **keywords):
        arguments = {"weights": None, "sample_weight": None, "offset": None, "intercept": False} | keywords
        return working_set.covers(solver._problem(X, y, groups, lam, "squared", *arguments.values()))

    assert covered(X, EQUAL) and covered(X, EQUAL, intercept=True)
    assert not covered(X[:, :40], Groups.equal(10, 4))  # small
    assert not covered(X, EQUAL, lam=0.0)  # everything unpenalised
    assert not covered(designs.Centred(designs.dense(X), jnp.full(T, 1 / T)), EQUAL)  # by its owner, with no intercept
    assert not covered(X, Groups.from_sizes([2000] + [1] * 2400))  # no block form


@pytest.mark.parametrize(
    "loss, everything", [("squared", False), pytest.param("logistic", True, marks=pytest.mark.slow)], ids=["squared", "logistic, everything"]
)
def test_a_path_is_certified_at_every_lam(loss, everything):
    X, y, more = problem(2, loss, EQUAL, jnp.float64)
    keywords = {"loss": loss, "intercept": True, **more} if everything else {"loss": loss}
    path = group_lasso.path(X, y, EQUAL, num_lams=10, min_ratio=0.05, tol=1e-7, **keywords).check()
    largest = group_lasso.lam_max(X, y, EQUAL, **keywords)
    np.testing.assert_allclose(path.stats["lam"], largest * 0.05 ** np.linspace(0, 1, 10), rtol=1e-7)
    assert path.value.coef.shape == (10, EQUAL.num_coefficients) and path.value.intercept.shape == (10,)
    free = int(np.sum(np.asarray(more["weights"]) == 0)) if everything else 0
    assert path.stats["num_active"][0] == free and np.all(np.diff(path.stats["num_active"]) >= -3) and path.stats["num_steps"].sum() <= 40
    for k in range(10):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], path)
        again = compiled_solve(X, y, EQUAL, at.stats["lam"], tol=1e-7, max_steps=0, state=at.state, **keywords)
        assert again.status == Status.CONVERGED
        np.testing.assert_allclose(again.stats["objective"], at.stats["objective"], rtol=1e-12)
    # The compiled loop may stall before that tolerance where groups are unpenalised: its gap says how near it came.
    apart = compiled_solve(X, y, EQUAL, path.stats["lam"][6], tol=1e-7, **keywords)
    assert abs(apart.stats["objective"] - path.stats["objective"][6]) <= apart.stats["gap"] + 1e-7 * apart.stats["scale"]


SHARED = [
    pytest.param("squared", False, jnp.float64, None, id="squared"),
    pytest.param("squared", False, jnp.float64, 3.0, id="squared, too few groups"),
    pytest.param("squared", False, jnp.float32, None, id="squared, float32", marks=pytest.mark.slow),
    pytest.param("logistic", True, jnp.float64, None, id="logistic, everything", marks=pytest.mark.slow),
    pytest.param("logistic", True, jnp.float64, 3.0, id="logistic, everything, too few groups", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("loss, everything, dtype, least", SHARED)
def test_lams_that_share_a_pass(loss, everything, dtype, least, monkeypatch):
    """On a fine grid several lams are certified in one pass; where the set lacked groups, the lam is mended and the rest begins again."""
    X, y, more = problem(2, loss, EQUAL, dtype)
    tol = 1e-7 if dtype == jnp.float64 else 1e-4
    keywords = {"loss": loss, "intercept": True, "tol": tol, **(more if everything else {})}
    passes, checks = [], homotopy.checks
    monkeypatch.setattr(homotopy, "checks", lambda *arguments: passes.append(len(arguments[1])) or checks(*arguments))
    if least is not None:
        monkeypatch.setattr(homotopy, "_LEAST", least)
    path = group_lasso.path(X, y, EQUAL, num_lams=24, min_ratio=0.25, **keywords).check()
    assert max(passes) == 4
    if least is None:
        assert len(passes) <= 10 and np.all(np.asarray(path.stats["num_steps"]) <= 3)
    else:
        assert np.max(path.stats["num_steps"]) > 1  # mended by a pass of its own
    for k in range(24):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], path)
        again = compiled_solve(X, y, EQUAL, at.stats["lam"], max_steps=0, state=at.state, **keywords)
        assert again.status == Status.CONVERGED
        np.testing.assert_allclose(again.stats["objective"], at.stats["objective"], rtol=1e-12 if dtype == jnp.float64 else 1e-5)


def test_lams_in_any_order():
    X, y, _ = problem(2, "squared", EQUAL, jnp.float64)
    largest = group_lasso.lam_max(X, y, EQUAL)
    ratios = jnp.asarray([0.5, 0.47, 0.8, 0.44, 0.44, 0.42, 0.41, 0.6])
    path = group_lasso.path(X, y, EQUAL, lams=ratios * largest, tol=1e-7).check()
    alone = group_lasso.solve(X, y, EQUAL, 0.41 * largest, tol=1e-7)
    close = group_lasso.path(X, y, EQUAL, lams=jnp.asarray([0.5, 0.5 * (1 - 1e-15), 0.4]) * largest, tol=1e-7).check()
    assert close.stats["num_steps"][2] == 1  # a secant over next to nothing is not believed: it costs a pass
    np.testing.assert_allclose(path.stats["objective"][6], alone.stats["objective"], atol=2e-7 * alone.stats["scale"])
    np.testing.assert_allclose(path.stats["objective"][3], path.stats["objective"][4], atol=1e-7 * alone.stats["scale"])
    short = group_lasso.path(X, y, EQUAL, lams=ratios * largest, tol=1e-9, max_steps=1)
    assert Status.MAX_STEPS in short.status and np.all(np.asarray(short.stats["num_steps"]) <= 1)
    assert np.all(np.isin(short.status, [Status.MAX_STEPS, Status.CONVERGED]))


def test_a_path_hands_over_what_it_cannot_finish():
    X, y, _ = problem(2, "squared", EQUAL, jnp.float64)
    path = group_lasso.path(X, y, EQUAL, num_lams=2, min_ratio=0.5, tol=1e-18)
    assert path.status[1] == Status.STALLED and path.stats["gap"][1] <= 1e-9 * path.stats["scale"][1]
    for bad in (jnp.nan, jnp.inf):
        poisoned = group_lasso.path(X.at[3, 2].set(bad), y, EQUAL, num_lams=2, min_ratio=0.5)
        assert np.all(np.asarray(poisoned.status) == Status.NONFINITE)


@pytest.mark.parametrize(
    "loss", ["squared", *(pytest.param(loss, marks=pytest.mark.slow) for loss in ("logistic", "huber", "poisson"))]
)
@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)], ids=["float64", "float32"])
def test_no_false_convergence(loss, dtype):
    """Small random problems with intercepts, weights (some 0), offsets and records of weight 0, judged in float64 numpy."""
    groups, tol = Groups.from_sizes(zoo.SIZES), 1e-6 if dtype == jnp.float64 else 1e-4
    codes, worst = [], 0.0
    for seed in range(500):
        at = zoo.Instance(*(np.asarray(a, dtype) for a in zoo.instance(seed, loss, zero_weight=loss != "logistic")))
        exact = zoo.Instance(*(np.asarray(a, np.float64) for a in at))
        lam = float(np.asarray(exact.ratio * zoo.lam_max(loss, exact, has_intercept=True), dtype))
        arrays = {"weights": at.weights, "sample_weight": at.sample_weight, "offset": at.offset}
        ended = working_set.solve_on_host(
            solver._problem(jnp.asarray(at.X), jnp.asarray(at.y), groups, lam, loss, *map(jnp.asarray, arrays.values()), True), tol, 60, None
        )
        codes.append(int(ended.status))
        if ended.status == Status.CONVERGED:
            gap, scale = zoo.gap(loss, exact, lam, np.asarray(ended.value.coef, np.float64), float(ended.value.intercept), has_intercept=True)
            worst = max(worst, gap / scale)
    assert worst <= tol, worst
    assert np.mean(np.asarray(codes) == Status.CONVERGED) >= (0.99 if dtype == jnp.float64 else 0.9), np.unique(codes, return_counts=True)
