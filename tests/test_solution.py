"""Solution and Status: readable failures, and every transformation lets them through."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Groups, Solution, SolverError, Status, bilevel, designs, losses, prox, summarise
from jaxsac.solution import register


def halve(x):
    status = jnp.where(x > 0, jnp.int32(Status.CONVERGED), jnp.int32(Status.NONFINITE))
    return Solution({"half": x / 2}, status, {"num_steps": jnp.int32(1)}, (x,))


def test_every_status_says_what_to_do():
    assert [status.value for status in Status] == [0, 1, 2, 3, 4]
    assert all(status.message.endswith(".") and len(status.message) > 30 for status in Status)


def test_check_returns_a_converged_solution():
    solution = jax.jit(halve)(2.0)
    assert solution.check() is solution


def test_check_names_lanes_and_advice():
    with pytest.raises(SolverError, match=r"NONFINITE in 2 of 4 lanes \(0, 2\): a NaN"):
        jax.vmap(halve)(jnp.asarray([-1.0, 1.0, -2.0, 3.0])).check()
    with pytest.raises(SolverError, match=r"1 of 4 lanes \(\(1, 0\)\)"):
        jax.vmap(jax.vmap(halve))(jnp.asarray([[1.0, 1.0], [-2.0, 3.0]])).check()
    with pytest.raises(SolverError, match=r"^NONFINITE: "):
        halve(jnp.asarray(-1.0)).check()


def test_check_inside_jit_says_where_to_call_it():
    with pytest.raises(TypeError, match="what the jitted function returns"):
        jax.jit(lambda x: halve(x).check().status)(1.0)


def test_is_a_pytree_under_jit_vmap_grad():
    solution = jax.jit(jax.vmap(halve))(jnp.arange(1.0, 4.0))
    assert solution.status.dtype == jnp.int32 and solution.status.shape == (3,)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, solution)
    np.testing.assert_array_equal(doubled.value["half"], [1.0, 2.0, 3.0])
    assert jax.grad(lambda x: halve(x).value["half"])(4.0) == 0.5


def test_export_round_trip():
    exported = jax.export.export(jax.jit(halve))(jax.ShapeDtypeStruct((), jnp.float32))
    solution = jax.export.deserialize(exported.serialize()).call(jnp.float32(4.0))
    assert (
        isinstance(solution, Solution)
        and solution.value["half"] == 2.0
        and solution.check() is solution
    )


RECORDS = {
    "groups": Groups.from_labels([0, 2, 2, 1]),
    "penalty": prox.Penalty((prox.Level(Groups.equal(2, 2), 0.5),), l1=0.1, nonnegative=True),
    "design": designs.Centred(designs.MultiOutput(np.ones((3, 2)), 2, "feature"), np.ones(3) / 3),
    "sets": designs.BudgetedChoice([[0, 1]], np.ones((1, 2)), 3),
    "losses": (losses.Huber(2.0), losses.SquareRoot(), losses.BudgetedGibbs(2, costs=[1, 2])),
    "summary": summarise({"regret": jnp.arange(3.0)}),
    "process": bilevel.rl.MDP(jnp.ones((1, 2, 1)), jnp.ones(1), 0.9),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_come_back_from_a_serialised_program(name):
    record = jax.tree.map(jnp.asarray, RECORDS[name])
    exported = jax.export.export(jax.jit(lambda record: record))(record)
    back = jax.export.deserialize(exported.serialize()).call(record)
    assert jax.tree.structure(back) == jax.tree.structure(record)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(record), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_record_with_a_function_cannot_be_serialised_and_says_so():
    @register
    class Holder(eqx.Module):
        function: Callable = eqx.field(static=True)

    exported = jax.export.export(jax.jit(lambda holder: holder))(Holder(abs))
    with pytest.raises(TypeError, match="Holder cannot be exported: one of its static fields"):
        exported.serialize()
