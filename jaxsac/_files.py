"""Arrays and JSON metadata in one file that is written whole or not at all, and read back bitwise
or refused.

A file is an ordinary uncompressed .npz (`numpy.load` opens it): one member per array, and
`header.json` with the format, its version, the kind of content and the caller's metadata. Its last
64 bytes, the archive's comment, are the SHA-256 of all bytes before them: nothing is parsed before
that agrees. Plain numbers and JSON only, no Python objects. Equal content gives equal bytes.
"""

import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = "jaxsac"
VERSION = 1
_HEADER = "header.json"
_DIGEST_LENGTH = 64
# Booleans, integers, floats, complex numbers: plain numbers, which any machine reads alike.
_DTYPE_KINDS = "biufc"

PathLike = str | os.PathLike[str]
Expected = Mapping[str, tuple[str, tuple[int | str | None, ...]]]


class FileError(ValueError):
    """A file that is not what was asked for: damaged, of another kind, of another version, or with
    other arrays. The message says which.
    """


def save(
    path: PathLike, kind: str, arrays: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `arrays` and JSON `metadata` to `path`, as content of a named `kind`.

    The bytes go to a temporary file in the same folder, are synced, and take the name `path` in one
    step: whoever looks sees the old file or the new one, also after a kill or a power cut.

    Raises: ValueError for arrays of anything but numbers, and for metadata that is not JSON (NaN
    included).
    """
    write_atomically(Path(path), to_bytes(kind, arrays, metadata or {}))


def load(path: PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read back (arrays, metadata) of a file written by `save` with the same `kind`.

    Raises: FileError for everything but the content that was saved, and the usual OSError when
    there is no such file.
    """
    try:
        return from_bytes(Path(path).read_bytes(), kind)
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from None


def to_bytes(kind: str, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    header = {
        "format": _FORMAT,
        "version": VERSION,
        "kind": kind,
        "arrays": sorted(arrays),
        "metadata": dict(metadata),
    }
    try:
        text = json.dumps(header, allow_nan=False, sort_keys=True)
        faithful = json.loads(text) == header
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metadata must be JSON (text, finite numbers, lists, dicts with text keys): {error}."
        ) from None
    if not faithful:
        raise ValueError(
            "metadata must be JSON: tuples become lists and keys become text there, so pass lists"
            " and text keys."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(_HEADER), text)
        for name in sorted(arrays):
            array = np.asarray(arrays[name])
            if array.dtype.kind not in _DTYPE_KINDS:
                raise ValueError(
                    f"array {name!r} has dtype {array.dtype}: only booleans and numbers can be"
                    " saved."
                )
            with archive.open(_member(name + ".npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        archive.comment = b"0" * _DIGEST_LENGTH
    content = buffer.getbuffer()[:-_DIGEST_LENGTH]
    return bytes(content) + hashlib.sha256(content).hexdigest().encode()


def from_bytes(data: bytes, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    content, digest = memoryview(data)[:-_DIGEST_LENGTH], data[-_DIGEST_LENGTH:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise FileError(
            "damaged, cut short, or not a jaxsac file: restore it from a copy, or delete it and"
            " call again what made it."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():  # the writer only stores: what is packed is a bomb
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                    raise FileError(f"{member.filename!r} is compressed: make the file again.")
            header = json.loads(archive.read(_HEADER))
            found = header["format"], header["version"], header["kind"]
            if found[:2] != (_FORMAT, VERSION):
                raise FileError(
                    f"format {found[0]!r} version {found[1]!r}, expected {_FORMAT!r} {VERSION}:"
                    " use the jaxsac that wrote it."
                )
            if found[2] != kind:
                raise FileError(f"holds a {found[2]!r}, expected a {kind!r}: pass another file.")
            arrays = {}
            for name in header["arrays"]:
                with archive.open(name + ".npy") as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                if arrays[name].dtype.kind == "f" and arrays[name].dtype.itemsize > 8:
                    raise FileError(f"array {name!r} is wider than float64: save it as float64.")
            metadata = header["metadata"]
    except FileError:
        raise
    except Exception as error:
        # The digest agrees, so someone made this on purpose; whatever they broke is one error here,
        # MemoryError on absurd shapes included.
        raise FileError(
            f"not a jaxsac file ({type(error).__name__}: {error}): make it again."
        ) from None
    return arrays, metadata


def check(arrays: Mapping[str, np.ndarray], expected: Expected) -> None:
    """Raise `FileError` unless `arrays` has exactly the names, dtype kinds and shapes that are
    `expected`: it maps each array's name to (dtype kinds, shape). Kinds are letters out of "biufc"
    ("f": floating); an entry of the shape is a size, None for any size, or a letter that stands for
    one size throughout, e.g. {"support": ("iu", ("k",)), "scores": ("f", ("k", "q"))}.
    """
    if set(arrays) != set(expected):
        raise FileError(
            f"holds the arrays {sorted(arrays)}, expected {sorted(expected)}: it was written by"
            " other code."
        )
    letters: dict[str, int] = {}
    for name, (kinds, shape) in expected.items():
        array = arrays[name]
        wanted = [
            letters.setdefault(size, got) if isinstance(size, str) else size
            for size, got in zip(shape, array.shape, strict=False)
        ]
        fits = array.ndim == len(shape) and all(
            want is None or want == got for want, got in zip(wanted, array.shape, strict=True)
        )
        if array.dtype.kind not in kinds or not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise FileError(
                f"array {name!r} is {array.dtype}{list(array.shape)}, expected kind {kinds!r} and"
                f" shape [{sizes}]."
            )


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; a kill on the way leaves at most a stray `.NAME.*.tmp`
    beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # the new name is on disk only when the folder is; not every system lets one sync a folder
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # its date is 1980 whatever the clock says
    info.external_attr = 0o644 << 16
    return info
