import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subsample_q.models import hard_kernels, random_model, tuple_kernel

from jaxsac import subsample_q as sq
from jaxsac.problems import subsample_q as problems
from jaxsac.subsample_q.exact import agents, solver
from jaxsac.subsample_q.exact.operator.expectation import kernel_tables
from jaxsac.subsample_q.exact.operator.forms.dense import dense_kernel


def expectation(model, plan, values):
    """E[V(s_g', h') | s_g, h, a]."""
    kernels = model.local_transition.reshape(-1, *model.local_transition.shape[-2:])
    return agents.surrogate(model, (plan,), [kernel_tables(kernels, plan)]).expect(values)


def operator_error(model, k, backend):
    """Largest error on functions with a known expectation, at full size."""
    plan = sq.plan(model, k, backend=backend)
    values, weights, exact = agents.probe(model, (k,))
    out = jax.jit(expectation)(model, plan, values)
    return float(jnp.max(jnp.abs(jnp.einsum("gna,a->gn", out, weights) - exact)))


@pytest.mark.parametrize("k,L", [(1, 3), (4, 2), (3, 3), (2, 4)])
def test_the_dense_kernel_enumerates_all_joint_moves(k, L):
    P = hard_kernels(1, L)["random"]
    np.testing.assert_allclose(dense_kernel(jnp.asarray(P), k), tuple_kernel(P, k), atol=1e-14)


@pytest.mark.parametrize("backend", ["thinning", "exchange"])
@pytest.mark.parametrize("k,L", [(3, 2), (4, 4)])
def test_structured_operators_equal_the_dense_one_on_hard_kernels(backend, k, L):
    local = np.stack(list(hard_kernels(2, L).values()))
    model = random_model(0, G=len(local), A=2, L=L, local=local)
    values = jnp.asarray(
        np.random.default_rng(0).normal(size=(len(local), len(sq.HistogramSpace(k, L))))
    )

    def apply(backend):
        plan = sq.plan(model, k, backend=backend)
        return jax.jit(expectation)(model, plan, values)

    np.testing.assert_allclose(apply(backend), apply("dense"), atol=2e-14)


def lumpable(by_rows, L, R, seed=0):
    """Kernels [2, L, L] with R classes of equal rows, or of proportional columns (not the same ones
    in both kernels).
    """
    generator = np.random.default_rng(seed)
    classes = np.stack([generator.permutation(np.arange(L) % R) for _ in range(2)])
    if by_rows:
        return np.stack([generator.dirichlet(np.ones(L), R)[c] for c in classes])
    arrive, weight = generator.dirichlet(np.ones(R), (2, L)), generator.random((2, L))
    share = np.stack([w / np.bincount(c, w)[c] for w, c in zip(weight, classes, strict=True)])
    return np.stack([arrive[g][:, classes[g]] * share[g] for g in range(2)])


@pytest.mark.parametrize("by_rows", [True, False])
def test_lumping_equal_rows_or_exchangeable_states_changes_nothing(by_rows):
    L, k = 5, 3
    model = random_model(1, G=2, A=3, L=L, local=lumpable(by_rows, L, 2))
    plan = sq.plan(model, k, backend="lumped")
    assert plan.num_classes == 2 and plan.by_rows == by_rows
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, len(sq.HistogramSpace(k, L)))))
    lumped, dense = (jax.jit(expectation)(model, p, values) for p in (plan, sq.plan(model, k)))
    np.testing.assert_allclose(lumped, dense, atol=1e-14)
    with pytest.raises(ValueError, match="needs local states with equal rows"):
        sq.plan(random_model(1, L=3), k, backend="lumped")


@pytest.mark.slow
def test_demand_response_lumps_where_no_other_exact_form_is_cheap():
    model = sq.Model(*problems.demand_response())
    assert sq.plan(model, 3).backend == "lumped" and sq.plan(model, 3).num_classes == 5
    solution = sq.solve(model, 3).check()
    assert (
        sq.BACKENDS[int(solution.stats["backend"])] == "lumped"
        and solution.stats["operator_error"] < 1e-12
    )
    np.testing.assert_allclose(
        solution.value.q,
        sq.solve(model, 3, backend="dense").check().value.q,
        atol=1e-5 * float(solution.stats["scale"]),
    )
    slopes = jax.grad(
        lambda m: jnp.sum(sq.solve(m, 2, plan=sq.plan(model, 2, backend="lumped")).value.value)
    )(model)
    dense = jax.grad(
        lambda m: jnp.sum(sq.solve(m, 2, plan=sq.plan(model, 2, backend="dense")).value.value)
    )(model)
    np.testing.assert_allclose(
        slopes.local_transition, dense.local_transition, rtol=1e-5, atol=1e-5
    )


def test_more_actions_than_states_and_actions_that_drive_the_agents_take_the_same_answer():
    generator = np.random.default_rng(3)
    G, A, L, k = 2, 3, 3, 4
    Pg, rg = generator.dirichlet(np.ones(G), (G, A)), generator.normal(size=(G, A))
    Pl, rl = generator.dirichlet(np.ones(L), (G, A, L)), generator.normal(size=(G, A, L))
    model = sq.Model(Pg, Pl, rg, rl, 0.8)
    values = jnp.asarray(generator.normal(size=(G, len(sq.HistogramSpace(k, L)))))
    kernels = np.stack(
        [[np.asarray(dense_kernel(jnp.asarray(Pl[g, a]), k)) for a in range(A)] for g in range(G)]
    )
    exact = np.einsum("ganm,gac,cm->gna", kernels, Pg, values)
    for backend in ("dense", "thinning"):
        plan = sq.plan(model, k, backend=backend)
        np.testing.assert_allclose(jax.jit(expectation)(model, plan, values), exact, atol=1e-13)
    assert sq.solve(model, k, backend="thinning").check().stats["operator_error"] < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("dtype,tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_the_closed_form_test_at_a_size_without_a_dense_kernel(dtype, tolerance):
    model = random_model(1, G=2, L=4, dtype=dtype)
    assert operator_error(model, 12, "thinning") < tolerance
    assert operator_error(model, 12, "dense") < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("k,L", [(20, 5), (20, 3)])
def test_full_size_accuracy_on_hard_kernels(k, L):
    for seed in range(3):
        local = np.stack(list(hard_kernels(seed, L).values()))
        model = random_model(seed, G=len(local), A=2, L=L, local=local)
        assert operator_error(model, k, "thinning") < 1e-12


def test_models_with_other_transitions_share_one_program():
    """The search finds other pivots for each; nothing of that is a part of the trace."""
    sq.solve(random_model(8), 4, backend="thinning").check()
    before = solver._solve._cache_size()
    sq.solve(random_model(9), 4, backend="thinning").check()
    assert solver._solve._cache_size() == before


def test_plans_say_why_and_what_fits():
    assert sq.plan(random_model(0), 4).backend == "dense"
    plan = sq.plan(random_model(0), 4, backend="thinning")
    assert plan.reason == "asked for" and np.all(plan.amplification >= 1)
    assert sq.plan(random_model(0, L=5), 10).backend == "thinning"
    with pytest.raises(ValueError, match=r"k=2000 sampled agents over 5 local states are .* fits"):
        sq.plan(random_model(0, L=5), 2000)
    with pytest.raises(ValueError, match=r"dense' needs .* GiB"):
        sq.plan(random_model(0, L=5), 20, backend="dense")
    with pytest.raises(ValueError, match=r"pass plan=subsample_q.plan\(model, k\)"):
        jax.vmap(lambda m: sq.solve(m, 20))(jax.tree.map(lambda a: a[None], random_model(0, L=5)))
    with pytest.raises(ValueError, match="plan was made for k=4"):
        sq.solve(random_model(0), 3, plan=sq.plan(random_model(0), 4))
    for bad in ([3], 3):
        with pytest.raises(ValueError, match="plan must be what subsample_q"):
            sq.solve(random_model(0), 3, plan=bad)
