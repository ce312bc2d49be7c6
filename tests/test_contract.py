"""The contract of every public solver, checked on every registered case. Rooms only register: see
`contract.py`.
"""

import importlib.util
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import Case

from jaxsac import Solution, Status


def registered() -> list[Case]:
    cases = []
    for path in sorted(pathlib.Path(__file__).parent.glob("*/contract_cases.py")):
        spec = importlib.util.spec_from_file_location(f"contract_cases_{path.parent.name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases += module.CASES
    return cases


CASES = {case.name: case for case in registered()}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_dtype = pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"]
)

LANES = 4


# Jitted once for all tests, by name: a Case holds dicts and has no hash.
SOLVERS = {
    name: jax.jit(lambda problem, hyper, case=case: case.solve(**problem, **hyper))
    for name, case in CASES.items()
}
BATCHED = {name: jax.jit(jax.vmap(solver, in_axes=(0, None))) for name, solver in SOLVERS.items()}


def lanes(case: Case, dtype) -> dict:
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(case.problem(seed, dtype) for seed in range(LANES))
    )


def close(case: Case, dtype, actual, expected):
    """Two answers agree within what their certificates allow; values and status, not the path
    taken.
    """
    tolerance = case.tolerance[jnp.dtype(dtype).name]
    np.testing.assert_array_equal(actual.status, expected.status)
    for one, other in zip(
        jax.tree.leaves(actual.value), jax.tree.leaves(expected.value), strict=True
    ):
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


@every_dtype
@every_case
def test_value_status_and_dtype(case, dtype):
    solution = SOLVERS[case.name](case.problem(0, dtype), dict(case.hyper))
    assert (
        isinstance(solution, Solution)
        and solution.status.dtype == jnp.int32
        and solution.status.shape == ()
    )
    assert solution.status == Status.CONVERGED, Status(int(solution.status)).name
    for leaf in jax.tree.leaves(solution.value):
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == dtype
        assert np.all(np.isfinite(leaf))
    solution.check()


@every_dtype
@every_case
def test_jit_and_the_plain_call_agree(case, dtype):
    problem = case.problem(1, dtype)
    close(
        case,
        dtype,
        SOLVERS[case.name](problem, dict(case.hyper)),
        case.solve(**problem, **case.hyper),
    )


@every_dtype
@every_case
def test_vmap_is_a_loop(case, dtype):
    batch = BATCHED[case.name](lanes(case, dtype), dict(case.hyper))
    for lane in range(LANES):
        alone = SOLVERS[case.name](case.problem(lane, dtype), dict(case.hyper))
        close(case, dtype, jax.tree.map(lambda leaf, lane=lane: leaf[lane], batch), alone)


@every_dtype
@every_case
def test_one_poisoned_lane_leaves_the_others_bitwise_equal(case, dtype):
    healthy = lanes(case, dtype)
    flat = healthy[case.poison].reshape(LANES, -1)
    poisoned = {
        **healthy,
        case.poison: flat.at[1, 0].set(jnp.nan).reshape(healthy[case.poison].shape),
    }
    before, after = (
        BATCHED[case.name](problem, dict(case.hyper)) for problem in (healthy, poisoned)
    )
    assert after.status[1] == Status.NONFINITE
    others = np.asarray([0, 2, 3])
    chex.assert_trees_all_equal(
        *(
            jax.tree.map(lambda leaf: leaf[others], (s.value, s.status, s.stats))
            for s in (before, after)
        )
    )


@every_case
def test_one_trace_over_a_sweep(case):
    problem = case.problem(0, jnp.float64)
    case.solve(**problem, **case.hyper)
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
                case.solve(**problem, **{**case.hyper, name: number}).status.block_until_ready()
            warm = compiled.count
            for number in [*kinds, values[0] * 1.01, values[0] * 0.99]:
                case.solve(**problem, **{**case.hyper, name: number}).status.block_until_ready()
        assert compiled.count == warm, f"{name}: a new value compiled again"
        assert warm <= 4, f"{name}: {warm} compilations over kinds of scalars"


@every_case
def test_gradients_match_central_differences(case):
    problem = case.problem(2, jnp.float64)
    hyper = {name: jnp.asarray(value) for name, value in case.hyper.items()}

    @jax.jit
    def scalar(arguments):
        return case.scalar(case.solve(**arguments))

    everything = {**problem, **hyper}
    chosen = {name: everything[name] for name in case.differentiate}
    slopes = jax.jit(jax.grad(lambda chosen: scalar({**everything, **chosen})))(chosen)
    rng = np.random.default_rng(0)
    for name, slope in slopes.items():
        value = everything[name]
        direction = jnp.asarray(rng.normal(size=np.shape(value)))
        h = case.step * float(jnp.max(jnp.abs(value))) / float(jnp.max(jnp.abs(direction)))
        central = (
            scalar({**everything, name: value + h * direction})
            - scalar({**everything, name: value - h * direction})
        ) / (2 * h)
        np.testing.assert_allclose(
            jnp.sum(slope * direction), central, rtol=case.gradient_rtol, atol=1e-9, err_msg=name
        )


@every_case
def test_bad_input_names_the_argument(case):
    problem = case.problem(0, jnp.float64)
    for changed, message in case.bad:
        with pytest.raises(ValueError, match=message):
            case.solve(**{**problem, **case.hyper, **changed})


@every_case
def test_export_round_trip(case):
    problem, hyper = (
        case.problem(0, jnp.float64),
        {name: jnp.asarray(value) for name, value in case.hyper.items()},
    )
    arguments = {**problem, **hyper}

    def run(arguments):
        solution = case.solve(**arguments)
        return tuple(jax.tree.leaves(solution.value)), solution.status

    exported = jax.export.export(jax.jit(run))(arguments)
    value, status = jax.export.deserialize(exported.serialize()).call(arguments)
    expected = SOLVERS[case.name](problem, dict(case.hyper))
    close(case, jnp.float64, Solution(value, status, {}, None), expected)


def test_the_registry_is_not_empty():
    assert CASES and len(CASES) == len(registered()), "names must be unique"
