"""What the declarations of arguments convert, check and say."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import Solution
from jaxsac._arguments import (
    arguments,
    choice,
    declared,
    either,
    flag,
    function,
    integer,
    key,
    parts,
    real,
    record,
    size,
)


class Box:
    dtype = np.dtype(np.float32)
    width = 3


@arguments(
    v=real("d"),
    radius=real(low=0, below="d"),
    index=integer("T", low=-1, below="d"),
    k=size(1, 10),
    kind=choice("a", "b"),
    lam=either(real(above=0), choice("auto")),
    pair=parts(state=integer(low=0), counts=real("L")),
    box=record(Box, sizes=lambda box: {"d": box.width}),
    call=function("(x) -> scalar"),
    exact=flag(),
    key=key(),
    own=real(..., own=True),
    several=either(real(low=0), real("d", low=0)),
)
def take(v, radius=1, *, index=None, k=2, kind="a", lam=None, pair=None, box=None, call=None,
         exact=False, key=None, own=None, several=None):  # fmt: skip
    return locals()


V = np.array([1.0, 2.0, 3.0])


def test_numbers_take_the_dtype_of_the_first_floating_array():
    single = take(V.astype(np.float32), 2)
    assert single["v"].dtype == single["radius"].dtype == np.float32
    double = take([1, 2, 3], 2.0)
    assert double["v"].dtype == double["radius"].dtype == np.float64
    assert take([True, False, True])["v"].dtype == np.float64
    assert take(jnp.asarray(V, jnp.bfloat16))["v"].dtype == np.float32
    assert take(V.astype(np.float16))["v"].dtype == np.float32
    assert take(V, own=V.astype(np.float32))["own"].dtype == np.float32
    assert take([1, 2, 3], box=Box())["v"].dtype == np.float32
    np.testing.assert_array_equal(take([1, 2, 3])["v"], V)


def test_integers_are_never_cut():
    given = take(V, index=np.array([-1, 2], np.int64))["index"]
    assert given.dtype == np.int32 and given.tolist() == [-1, 2]
    assert take(V, index=[])["index"].shape == (0,)
    assert type(take(V, k=np.int64(4))["k"]) is int


def test_defaults_are_converted_and_none_passes_where_it_is_the_default():
    given = take(V)
    assert given["radius"].dtype == np.float64 and given["index"] is None and given["lam"] is None
    assert take(V, lam=None)["lam"] is None
    for good in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert take(V, key=good)["key"] is good
    solution = Solution(Box(), jnp.int32(0), {}, None)
    assert isinstance(take(V, box=solution)["box"], Box)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"v": "text"}, "v must hold real numbers, got 'text'"),
        ({"v": None}, "v must hold real numbers, got None"),
        ({"v": V * 1j}, "v must be real, got complex128: pass its real part"),
        ({"v": np.array(["1.5"])}, "v must hold real numbers"),
        ({"v": np.array([1], object)}, "v must hold real numbers"),
        ({"v": V.astype(np.longdouble)}, "v must be float64 or narrower"),
        ({"v": V[None]}, r"v must have shape \[d\], got \[1, 3\]: use jax.vmap"),
        ({"v": jax.random.key(0)}, "v must hold real numbers"),
        ({"radius": -1}, "radius must be ≥ 0, got -1"),
        ({"radius": float("nan")}, "radius must be ≥ 0, got nan"),
        ({"radius": 3.0}, "radius must be < d = 3, got 3"),
        ({"radius": V}, "radius must be one number"),
        ({"index": [0, 3]}, "index must be < d = 3 everywhere, got 3"),
        ({"index": [0.5]}, "index must hold integers, got float64"),
        ({"index": np.array([2**33])}, r"index must be within ±2\^31"),
        ({"index": [True]}, "index must hold integers, got bool"),
        ({"index": True}, "index must be a whole number, got True"),
        ({"k": 0}, "k must be ≥ 1, got 0"),
        ({"k": 11}, "k must be ≤ 10, got 11"),
        ({"k": 2.0}, "k must be an integer, got 2.0"),
        ({"k": True}, "k must be an integer, got True"),
        ({"k": 2**40}, r"k must be below 2\^31"),
        ({"kind": "c"}, "kind must be one of 'a', 'b', got 'c'"),
        ({"kind": np.ones(2)}, "kind must be one of 'a', 'b'"),
        ({"lam": 0}, "lam must be > 0, got 0"),
        ({"lam": "atuo"}, "lam must be one of 'auto', got 'atuo'"),
        ({"several": -1.0}, "several must be ≥ 0, got -1"),
        ({"several": [0.5, 2.0, -1.0]}, "several must be ≥ 0 everywhere, got -1"),
        ({"several": V[None]}, r"several must have shape \[d\]|several must be one number"),
        ({"pair": (0,)}, "pair must be "),
        ({"pair": (-1, [0.5])}, "pair: state must be ≥ 0"),
        ({"box": 3}, "box must be a Box, got 3"),
        ({"v": V[:2], "box": Box()}, "box must have d = 2, got 3"),
        ({"call": 3}, r"call must be a function \(x\) -> scalar"),
        ({"exact": "yes"}, "exact must be True or False"),
        ({"key": 0}, "key must be one key"),
        ({"key": jax.random.split(jax.random.key(0))}, "key must be one key"),
        ({"v": V.astype(np.float32), "pair": (0, V)}, "pair: counts has dtype float64"),
    ],
)
def test_refusals_name_the_argument_and_say_what_to_do(changed, message):
    with pytest.raises(ValueError, match=message):
        take(**{"v": V, **changed})


def test_python_refuses_what_is_no_argument():
    for call in (lambda: take(), lambda: take(V, 1, v=V), lambda: take(V, radios=1)):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError, match="no parameter w"):
        arguments(w=real())(lambda v: v)


def test_traced_values_are_converted_and_not_looked_at():
    @jax.jit
    def traced(v, radius, index):
        given = take(v, radius, index=index)
        return given["v"], given["radius"], given["index"]

    v, radius, index = traced(np.arange(3), 2.5, np.array([2**33, -(2**40)]))
    assert v.dtype == np.float64 and radius == 2.5 and index.dtype == np.int32
    assert index.tolist() == [2**31 - 1, -(2**31)]
    with pytest.raises(ValueError, match="k decides array shapes"):
        jax.jit(lambda k: take(V, k=k))(2)
    np.testing.assert_array_equal(
        jax.vmap(lambda radius: take(V, radius)["radius"])(jnp.arange(3)), [0.0, 1.0, 2.0]
    )


def test_a_traced_number_out_of_range_is_nan():
    radii = jnp.array([-1.0, 0.0, 2.5, 3.0, jnp.nan])
    given = jax.jit(jax.vmap(lambda radius: take(V, radius)["radius"]))(radii)
    np.testing.assert_array_equal(given, [np.nan, 0.0, 2.5, np.nan, np.nan])
    assert jax.grad(lambda radius: take(V, radius)["radius"] ** 2)(2.0) == 4


@pytest.mark.parametrize("index", [[0, 2], np.array([0, 2]), jnp.array([0, 2], jnp.int8)])
def test_what_is_concrete_stays_so_in_what_is_traced(index):
    @jax.jit
    def traced(x):
        given = take(V.tolist(), index=index)
        assert np.asarray(given["index"]).tolist() == [0, 2]
        assert np.asarray(given["v"]).tolist() == V.tolist()
        return x

    traced(1.0)


def test_large_arrays_are_not_searched():
    @arguments(x=real("T", low=0))
    def positive(x):
        return x

    assert positive(np.full(100_001, -1.0)).shape == (100_001,)
    with pytest.raises(ValueError, match="x must be ≥ 0 everywhere"):
        positive(np.full(100_000, -1.0))


def test_a_declaration_reads_as_a_row_of_a_table():
    assert {name: str(kind) for name, kind in declared(take).items()} == {
        "v": "real [d]",
        "radius": "number, ≥ 0, < d",
        "index": "int32 [T], ≥ -1, < d",
        "k": "size, a Python int, ≥ 1, ≤ 10",
        "kind": '"a" or "b"',
        "lam": 'number, > 0, or "auto"',
        "pair": "(state: integer, ≥ 0, counts: real [L])",
        "box": "a Box",
        "call": "a function (x) -> scalar",
        "exact": "True or False",
        "key": "a key of jax.random",
        "own": "real of any shape",
        "several": "number, ≥ 0, or real [d], ≥ 0",
    }


def test_the_page_of_arguments_is_up_to_date():
    path = pathlib.Path(__file__).parent.parent / "docs" / "make_arguments.py"
    spec = importlib.util.spec_from_file_location("make_arguments", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run python docs/make_arguments.py"


def test_a_small_number_that_becomes_zero_is_out_of_range():
    @arguments(v=real("d"), radius=real(above=0))
    def scaled(v, radius):
        return v * radius

    scaled(np.ones(2), 1e-50)
    with pytest.raises(ValueError, match="radius must be > 0"):
        scaled(np.ones(2, np.float32), 1e-50)
