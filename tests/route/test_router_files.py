"""Router files that someone changed on purpose: FileError, or the right content."""

import hashlib
import io
import itertools
import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from jaxsac import FileError, _files, control
from jaxsac.route.features import NumberFeatures
from jaxsac.route.router import FEATURES, POLICY, Router, choose, load_router, save_router

ROUTER = Router(
    ["draw", "load", "send"],
    NumberFeatures(np.array([0.5, 0.0]), np.array([1.0, np.inf])),
    control.SparsePolicy(
        jnp.asarray([1], jnp.int32),
        jnp.asarray([[1.0, -0.5]]),
        jnp.asarray([0.1, -0.2, 0.3]),
        jnp.asarray([0], jnp.int32),
        jnp.asarray([0, 4, 7], jnp.int32),
        2,
        ("imitation", "per_tool"),
    ),
    [1.0, 0.0, 2.5],
)
CONTEXTS = np.array([[0.2, 0.4], [3.0, -1.0]])
VALUES = st.sampled_from(
    [None, True, -1, 0, 3, 10**30, 0.5, 1e300, "x", "\u0000", [], [1], ["a", "b", "c"], {}]
)
NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1, 0, 5, 2**40])
DTYPES = st.sampled_from(["float16", "float32", "float64", "longdouble", "int8", "int64", "bool"])


def changed(data, draw):
    """One field of the header or one array changed, under a digest that agrees."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = json.loads(archive.read("header.json"))
    kind, metadata = header["kind"], header["metadata"]
    arrays = _files.from_bytes(data, kind)[0]
    if draw(st.booleans()):
        metadata[draw(st.sampled_from(sorted(metadata)))] = draw(VALUES)
    else:
        name = draw(st.sampled_from(sorted(arrays)))
        array = np.array(arrays[name])
        if draw(st.booleans()):
            array = array.astype(draw(DTYPES))
        if array.size and array.dtype.kind == "f" and draw(st.booleans()):
            array.flat[draw(st.integers(0, array.size - 1))] = draw(NUMBERS)
        if draw(st.booleans()):
            array = array[:-1] if array.ndim else array[None]
        arrays[name] = array
    return _files.to_bytes(kind, arrays, metadata)


def check(folder, draw):
    save_router(folder, ROUTER)
    expected = choose(ROUTER, CONTEXTS)
    path = folder / draw(st.sampled_from([POLICY, FEATURES]))
    with np.errstate(all="ignore"):
        data = changed(path.read_bytes(), draw)
    if draw(st.booleans()):
        data = bytearray(data)
        data[draw(st.integers(0, len(data) - 65))] ^= 1 << draw(st.integers(0, 7))
        data = bytes(data[:-64]) + hashlib.sha256(bytes(data[:-64])).hexdigest().encode()
    path.write_bytes(data)
    try:
        router = load_router(folder)
    except FileError:
        return
    found = choose(router, CONTEXTS)
    assert len(found) == len(expected)
    for choice in itertools.chain.from_iterable(found):
        assert choice.tool in router.names and 0 <= choice.probability <= 1 + 1e-9


FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=60, derandomize=True, database=None, **FUZZ)
@given(st.data())
def test_a_changed_router_is_our_error_or_a_router(tmp_path_factory, data):
    check(tmp_path_factory.getbasetemp(), data.draw)


@pytest.mark.slow
@settings(max_examples=20_000, derandomize=True, database=None, **FUZZ)
@given(st.data())
def test_many_changed_routers_are_our_error_or_a_router(tmp_path_factory, data):
    check(tmp_path_factory.getbasetemp(), data.draw)
