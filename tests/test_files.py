"""Files: bitwise back, whole or not at all, and nothing but our error for anything else."""

import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as numpy_strategies

from jaxsac import FileError, _files

ARRAYS = {
    "scores": np.array([[1.5, np.nan, -0.0], [np.inf, 5e-324, 1e300]]),
    "support": np.array([3, 1], np.int32),
    "flag": np.array(True),
    "none": np.zeros((0, 4), np.float32),
}
METADATA = {"names": ["a", "ü"], "nested": {"lam": 0.1, "none": None}, "count": 3}


def same(left, right):
    return (
        left.keys() == right.keys()
        and all(
            left[name].dtype == right[name].dtype and left[name].shape == right[name].shape
            for name in left
        )
        and all(left[name].tobytes() == right[name].tobytes() for name in left)
    )


def reseal(data):
    """`data` with a digest that agrees: what only a person does on purpose."""
    return data[:-64] + hashlib.sha256(data[:-64]).hexdigest().encode()


def test_what_is_saved_comes_back_bitwise(tmp_path):
    path = tmp_path / "artifact"
    _files.save(path, "policy", ARRAYS, METADATA)
    arrays, metadata = _files.load(str(path), "policy")
    assert same(arrays, ARRAYS) and metadata == METADATA
    assert os.listdir(tmp_path) == ["artifact"]
    with np.load(path, allow_pickle=False) as plain:
        assert same({name: plain[name] for name in ARRAYS}, ARRAYS)
    assert _files.to_bytes("policy", dict(reversed(ARRAYS.items())), METADATA) == path.read_bytes()


any_array = numpy_strategies.arrays(
    dtype=st.sampled_from(
        [
            np.dtype(name)
            for name in (
                "bool",
                "int8",
                "uint32",
                "int64",
                "float16",
                "float32",
                "float64",
                "complex64",
            )
        ]
    ),
    shape=numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
json_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(st.text("abc_xyz", min_size=1), any_array, max_size=4),
    st.dictionaries(st.text(), json_value, max_size=4),
)
def test_any_content_comes_back_bitwise(arrays, metadata):
    loaded, also = _files.from_bytes(_files.to_bytes("k", arrays, metadata), "k")
    assert (
        same(loaded, {name: np.asarray(value) for name, value in arrays.items()})
        and also == metadata
    )


def test_every_damage_is_our_error():
    data = _files.to_bytes("policy", ARRAYS, METADATA)
    rng = np.random.default_rng(0)
    mutants = [data[:length] for length in range(0, len(data), 7)] + [
        data + b"\0",
        b"",
        b"\0" * 500,
    ]
    for position in rng.permutation(len(data))[:1000]:
        mutant = bytearray(data)
        mutant[position] ^= 1 << rng.integers(8)
        mutants.append(bytes(mutant))
    for _ in range(200):
        mutant = bytearray(data)
        start = rng.integers(len(data))
        mutant[start : start + rng.integers(1, 40)] = rng.bytes(rng.integers(0, 40))
        mutants.append(bytes(mutant))
    for mutant in mutants:
        if mutant != data:
            with pytest.raises(FileError, match="damaged"):
                _files.from_bytes(mutant, "policy")


def test_damage_under_a_digest_that_agrees_is_our_error_or_the_right_content():
    data = _files.to_bytes("policy", ARRAYS, METADATA)
    rng = np.random.default_rng(1)
    refused = 0
    for position in range(len(data) - 64):
        mutant = bytearray(data)
        mutant[position] ^= 1 << rng.integers(8)
        try:
            arrays, metadata = _files.from_bytes(reseal(bytes(mutant)), "policy")
        except FileError:
            refused += 1
        else:
            assert same(arrays, ARRAYS) and metadata == METADATA
    assert refused > len(data) / 4


def test_pickled_objects_are_neither_written_nor_read():
    with pytest.raises(ValueError, match="'bad' has dtype object"):
        _files.to_bytes("k", {"bad": np.array([{}], object)}, {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(
            "header.json",
            json.dumps(
                {"format": "jaxsac", "version": 1, "kind": "k", "arrays": ["bad"], "metadata": {}}
            ),
        )
        with archive.open("bad.npy", "w") as member:
            np.lib.format.write_array(member, np.array([{}], object), allow_pickle=True)
        archive.comment = b"0" * 64
    with pytest.raises(FileError, match="not a jaxsac file"):
        _files.from_bytes(reseal(buffer.getvalue()), "k")


def test_absurd_shapes_do_not_exhaust_memory():
    data = _files.to_bytes("k", {"a": np.zeros(1000)}, {})
    assert data.count(b"(1000,)") == 1
    with pytest.raises(FileError):
        _files.from_bytes(reseal(data.replace(b"(1000,), }       ", b"(10000000000000,")), "k")


@pytest.mark.parametrize(
    "metadata", [{"x": float("nan")}, {"x": (1, 2)}, {1: 2}, {"x": np.float64}, {"x": np.int32(1)}]
)
def test_metadata_must_be_json(metadata):
    with pytest.raises(ValueError, match="metadata must be JSON"):
        _files.to_bytes("k", {}, metadata)


def test_other_kinds_versions_and_arrays_are_named(tmp_path, monkeypatch):
    path = tmp_path / "artifact.npz"
    _files.save(path, "policy", ARRAYS)
    with pytest.raises(
        FileError, match=r"artifact\.npz: holds a 'policy', expected a 'checkpoint'"
    ):
        _files.load(path, "checkpoint")
    with pytest.raises(FileNotFoundError):
        _files.load(tmp_path / "absent", "policy")
    good = {
        "scores": ("f", ("k", "q")),
        "support": ("iu", ("k",)),
        "flag": ("b", ()),
        "none": ("f", (None, 4)),
    }
    _files.check(_files.load(path, "policy")[0], good)
    wrong = [
        ({"scores": ("f", ("k", "q"))}, "holds the arrays"),
        (good | {"support": ("f", ("k",))}, r"'support' is int32\[2\], expected kind 'f'"),
        (good | {"support": ("iu", ("q",))}, r"'support' .* shape \[q\]"),
        (
            good | {"none": ("f", (1, 4))},
            r"'none' is float32\[0, 4\], expected kind 'f' and shape \[1, 4\]",
        ),
        (good | {"flag": ("b", (1,))}, "'flag'"),
        (good | {"scores": ("f", ("k",))}, "'scores'"),
    ]
    for expected, message in wrong:
        with pytest.raises(FileError, match=message):
            _files.check(_files.load(path, "policy")[0], expected)
    monkeypatch.setattr(_files, "VERSION", 2)
    with pytest.raises(FileError, match="version 1, expected 'jaxsac' 2"):
        _files.load(path, "policy")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "artifact"
    _files.save(path, "policy", ARRAYS, METADATA)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            _files.save(path, "policy", {}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["artifact"]
    _files.save(path, "policy", {}, {})
    assert _files.load(path, "policy") == ({}, {})


def test_what_is_packed_or_wider_than_float64_is_our_error():
    header = {"format": "jaxsac", "version": 1, "kind": "k", "arrays": [], "metadata": {}}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header) + " " * (1 << 20))
        archive.comment = b"0" * 64
    with pytest.raises(FileError, match="compressed"):
        _files.from_bytes(reseal(buffer.getvalue()), "k")
    wide = _files.to_bytes("k", {"a": np.zeros(2, np.longdouble)}, {})
    with pytest.raises(FileError, match="wider than float64"):
        _files.from_bytes(wide, "k")
