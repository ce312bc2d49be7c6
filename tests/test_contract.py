"""The contract of every public function that solves, checked on every registered case. Rooms only
register: see `contract.py`.
"""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import Case, cases
from jax.sharding import PartitionSpec
from public_names import PUBLIC, namespace

from jaxsac import Solution, Status
from jaxsac.solution import Reason

REGISTERED = cases()
CASES = {case.name: case for case in REGISTERED}
PURE = {name: case for name, case in CASES.items() if not case.host}


def over(chosen: dict[str, Case]):
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


every_case = over(CASES)
every_pure_case = over(PURE)

LANES = 4
DRAWING = {  # what is drawn depends on the dtype
    "bandits.simulate",
    "gibbs.sample",
    "gibbs.straight_through",
    "subsample_q.learn",
    "subsample_q.q_learning",
    "subsample_q.network.learn_network",
}
CERTIFICATE = {"error", "rounding", "scale", "num_steps", "reason"}


# A case is compiled once in float32 and twice in float64: the plain call, which jits itself, and a
# batch under another jit, whose lanes are the plain calls.
SOLVERS = {
    name: lambda problem, hyper, case=case: case.solve(**problem, **hyper)
    for name, case in CASES.items()
}
BATCHED = {name: jax.jit(jax.vmap(SOLVERS[name], in_axes=(0, None))) for name in PURE}


def lanes(case: Case) -> dict:
    """In float64: what a batch does to its lanes does not depend on the dtype."""
    problems = (case.problem(seed, jnp.float64) for seed in range(LANES))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)


def numbers(tree) -> list:
    """The leaves of a tree as arrays of numbers, keys by their data."""
    leaves = jax.tree.leaves(tree)
    return [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in map(jnp.asarray, leaves)
    ]


def close(case: Case, actual, expected, dtype=jnp.float64):
    """Two answers agree within what their certificates allow; values and status, not the path
    taken.
    """
    tolerance = case.tolerance[jnp.dtype(dtype).name]
    if case.certified:
        np.testing.assert_array_equal(actual.status, expected.status)
        actual, expected = actual.value, expected.value
    for one, other in zip(numbers(actual), numbers(expected), strict=True):
        size = np.max(np.abs(other), initial=1e-30)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * size)


class Compilations:
    """Counts what XLA compiles while active."""

    def __enter__(self):
        self.count = 0
        self.active = True
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event: str, duration: float, **_):
        if self.active and event.endswith("backend_compile_duration"):
            self.count += 1

    def __exit__(self, *_):
        self.active = False  # the public interface has no way to take one listener back


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(jnp.float32, id="float32", marks=pytest.mark.slow),
        pytest.param(jnp.float64, id="float64"),
    ],
)
@every_case
def test_value_status_and_dtype(case, dtype):
    answer = SOLVERS[case.name](case.problem(0, dtype), dict(case.hyper))
    value = answer
    if case.certified:
        assert isinstance(answer, Solution) and answer.status.dtype == jnp.int32
        assert answer.status.shape == ()
        assert answer.status == Status.CONVERGED, Status(int(answer.status)).name
        answer.check()
        value = answer.value
    for leaf in numbers(value):
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == dtype
        assert np.all(np.isfinite(leaf))


@every_pure_case
def test_single_precision_stays_so(case):
    """Traced and not compiled: where doubles are enabled a count or a default of another precision
    cannot be mixed with what was given.
    """
    problem, hyper = case.problem(0, jnp.float32), dict(case.hyper)
    answer = jax.eval_shape(SOLVERS[case.name], problem, hyper)
    value = answer.value if case.certified else answer
    for leaf in jax.tree.leaves(value):
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32


@every_case
def test_the_certificate_is_in_the_stats(case):
    answer = SOLVERS[case.name](case.problem(0, jnp.float64), dict(case.hyper))
    if not case.certified:
        return
    stats = answer.stats
    assert set(stats) >= CERTIFICATE, CERTIFICATE - set(stats)
    for name, leaf in stats.items():
        integer = name in ("reason", "method", "backend") or name.startswith("num_")
        expected = jnp.int32 if integer else jnp.float64
        expected = bool if leaf.dtype == bool else expected  # flags of records, say
        assert isinstance(leaf, jax.Array) and leaf.dtype == expected, name
    assert stats["reason"] == Reason.NONE
    assert stats["error"] >= 0 and stats["rounding"] >= 0 and stats["scale"] > 0
    assert "gap" not in stats or stats["gap"] == stats["error"]


@every_pure_case
def test_a_batch_under_jit_is_a_loop_of_plain_calls(case):
    batch = BATCHED[case.name](lanes(case), dict(case.hyper))
    for lane in range(LANES):
        alone = SOLVERS[case.name](case.problem(lane, jnp.float64), dict(case.hyper))
        close(case, jax.tree.map(lambda leaf, lane=lane: leaf[lane], batch), alone)


@pytest.mark.slow
@every_pure_case
def test_shard_map_is_vmap(case):
    """On two devices, with the checks that shard_map makes by default."""
    mesh = jax.make_mesh((2,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        jax.vmap(SOLVERS[case.name], in_axes=(0, None)),
        mesh=mesh,
        in_specs=(PartitionSpec("lanes"), PartitionSpec()),
        out_specs=PartitionSpec("lanes"),
    )
    problem, hyper = lanes(case), dict(case.hyper)
    close(case, jax.jit(sharded)(problem, hyper), BATCHED[case.name](problem, hyper))


@every_pure_case
def test_one_poisoned_lane_leaves_the_others_bitwise_equal(case):
    healthy = lanes(case)
    if case.poison not in healthy:
        pytest.fail(f"{case.name} must name an array of its problem to poison")
    flat = healthy[case.poison].reshape(LANES, -1)
    bad = flat.at[1, 0].set(jnp.nan).reshape(healthy[case.poison].shape)
    poisoned = {**healthy, case.poison: bad}
    before, after = (
        BATCHED[case.name](problem, dict(case.hyper)) for problem in (healthy, poisoned)
    )
    others = np.asarray([0, 2, 3])
    if case.certified:
        assert after.status[1] == Status.NONFINITE
        before, after = ((s.value, s.status, s.stats) for s in (before, after))
    else:
        assert any(
            np.any(np.isnan(leaf[1]))
            for leaf in numbers(after)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        )
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda leaf: leaf[others], tree) for tree in (before, after))
    )


@every_pure_case
def test_one_trace_over_a_sweep(case):
    problem = case.problem(0, jnp.float64)
    jax.block_until_ready(case.solve(**problem, **case.hyper))
    for name, values in case.sweep.items():
        # the kinds of numbers that users pass: each must land in the same trace
        kinds = [
            number
            for value in values
            for number in (
                value,
                np.float64(value),
                np.float32(value),
                jnp.asarray(value),
                jnp.float32(value),
            )
        ]
        with Compilations() as compiled:
            for number in kinds:
                # conversions of a scalar (float32 to float64, say) are tiny programs of their own;
                # the solver's trace is what counts
                jax.block_until_ready(case.solve(**problem, **{**case.hyper, name: number}))
            warm = compiled.count
            for number in [*kinds, values[0] * 1.01, values[0] * 0.99]:
                jax.block_until_ready(case.solve(**problem, **{**case.hyper, name: number}))
        assert compiled.count == warm, f"{name}: a new value compiled again"
        assert warm <= 4, f"{name}: {warm} compilations over kinds of scalars"


@over({name: case for name, case in PURE.items() if case.differentiate})
def test_gradients_match_central_differences(case):
    problem, hyper = case.problem(2, jnp.float64), dict(case.hyper)

    def scalar(changed):
        at = {name: changed.get(name, value) for name, value in problem.items()}
        numbers = {name: changed.get(name, value) for name, value in hyper.items()}
        return case.scalar(SOLVERS[case.name](at, numbers))

    chosen = {name: {**problem, **hyper}[name] for name in case.differentiate}
    value_and_slopes = jax.jit(jax.value_and_grad(scalar))  # the differences, by the same program
    slopes = value_and_slopes(chosen)[1]
    rng = np.random.default_rng(0)
    for name, slope in slopes.items():
        value = chosen[name]
        direction = jnp.asarray(rng.normal(size=np.shape(value)))
        h = case.step * float(jnp.max(jnp.abs(value))) / float(jnp.max(jnp.abs(direction)))
        ends = [value + h * direction, value - h * direction]
        if name in hyper:  # as everywhere: another kind of number would compile again
            ends = map(float, ends)
        above, below = (value_and_slopes({**chosen, name: end})[0] for end in ends)
        central = (above - below) / (2 * h)
        np.testing.assert_allclose(
            jnp.sum(slope * direction), central, rtol=case.gradient_rtol, atol=1e-9, err_msg=name
        )


@pytest.mark.slow
@over({name: case for name, case in PURE.items() if name.split()[0] not in DRAWING})
def test_single_precision_is_near_double(case):
    single, double = (
        SOLVERS[case.name](case.problem(0, dtype), dict(case.hyper))
        for dtype in (jnp.float32, jnp.float64)
    )
    close(case, single, double, jnp.float32)


@every_case
def test_bad_input_names_the_argument(case):
    problem = case.problem(0, jnp.float64)
    for changed, message in case.bad:
        with pytest.raises(ValueError, match=message):
            case.solve(**{**problem, **case.hyper, **changed})


@pytest.mark.slow
@every_pure_case
def test_export_round_trip(case):
    """All that is returned, serialised and back."""
    problem, hyper = case.problem(0, jnp.float64), dict(case.hyper)
    exported = jax.export.export(jax.jit(SOLVERS[case.name]))(problem, hyper)
    answer = jax.export.deserialize(exported.serialize()).call(problem, hyper)
    expected = SOLVERS[case.name](problem, hyper)
    assert jax.tree.structure(answer) == jax.tree.structure(expected)
    close(case, answer, expected)


@over({name: case for name, case in CASES.items() if case.host})
def test_what_the_host_returns_is_a_tree_of_arrays(case):
    """It passes through jit unchanged, and with it whatever it is asked there."""
    answer = SOLVERS[case.name](case.problem(0, jnp.float64), dict(case.hyper))
    through = jax.jit(lambda answer: answer)(answer)
    assert jax.tree.structure(through) == jax.tree.structure(answer)
    for one, other in zip(numbers(through), numbers(answer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_registry_is_not_empty():
    assert CASES and len(CASES) == len(REGISTERED), "names must be unique"


def test_every_function_that_returns_a_solution_is_registered():
    returning = {
        f"{room}.{name}"
        for room, names in PUBLIC.items()
        for name, value in ((name, getattr(namespace(room), name)) for name in names)
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation in (Solution, "Solution")
    }
    assert returning <= {case.name.split()[0] for case in CASES.values()}
