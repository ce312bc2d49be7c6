"""Checkpoints of trials: a folder with a file per finished chunk."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxsac import _checks, _files

_KIND = "chunk of trials"


class Store(NamedTuple):
    """A folder with one file per finished chunk. Each says which program and key made it, and is
    refused by any other.
    """

    folder: Path
    metadata: dict[str, Any]
    leaves: list[jax.ShapeDtypeStruct]
    # Several processes work on each chunk: the first one reads and writes, and tells the others.
    shared: bool

    def read(self, number: int) -> list[np.ndarray] | None:
        """The leaves of a finished chunk, or None where there is none."""
        found, refusal = None, None
        if not self.shared or jax.process_index() == 0:
            try:
                found = self._load(number)
            except (_files.FileError, OSError) as error:
                refusal = error
        if self.shared:
            found, refusal = self._agree(found, refusal)
        if refusal is not None:
            raise refusal
        return found

    def write(self, number: int, leaves: list[np.ndarray]) -> None:
        if self.shared and jax.process_index() != 0:
            return
        arrays = {str(index): _plain(leaf) for index, leaf in enumerate(leaves)}
        _files.save(self._path(number), _KIND, arrays, self.metadata | {"chunk": number})

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.npz"

    def _load(self, number: int) -> list[np.ndarray] | None:
        path = self._path(number)
        if not path.exists():
            return None
        arrays, metadata = _files.load(path, _KIND)
        for name, value in (self.metadata | {"chunk": number}).items():
            if metadata.get(name) != value:
                raise _files.FileError(
                    f"{path}: made with {_DIFFERENCES[name]}: pass a new folder, or make the call"
                    " that it belongs to."
                )
        expected = {
            str(index): (_plain(np.empty(0, leaf.dtype)).dtype.kind, tuple(leaf.shape))
            for index, leaf in enumerate(self.leaves)
        }
        _files.check(arrays, expected)
        return [arrays[str(index)].view(leaf.dtype) for index, leaf in enumerate(self.leaves)]

    def _agree(
        self, found: list[np.ndarray] | None, refusal: Exception | None
    ) -> tuple[list[np.ndarray] | None, Exception | None]:
        """What the first process read, in every process, bit by bit."""
        code = int(
            multihost_utils.broadcast_one_to_all(np.int32(2 if refusal else 1 if found else 0))
        )
        if code == 2:
            return None, refusal or _files.FileError(
                "process 0 refuses the checkpoint: its error says why."
            )
        if code == 0:
            return None, None
        own = found or [np.zeros(leaf.shape, leaf.dtype) for leaf in self.leaves]
        sent = [
            multihost_utils.broadcast_one_to_all(np.frombuffer(leaf.tobytes(), np.uint8))
            for leaf in own
        ]
        return [
            np.asarray(data).view(leaf.dtype).reshape(leaf.shape)
            for data, leaf in zip(sent, self.leaves, strict=True)
        ], None


_DIFFERENCES = {
    "key": "another key",
    "lanes": "another chunk size",
    "program": "another function, other data that it closes over, or other devices",
    "versions": "another version of jax or another kind of device",
    "chunk": "another name (it was moved)",
}


def open_store(
    checkpoint: Any,
    program: Any,
    raw: np.ndarray,
    implementation: Any,
    lanes: int,
    mesh: Mesh | None,
    template: Any,
) -> Store:
    folder = Path(checkpoint)
    _checks.require(
        not folder.exists() or folder.is_dir(),
        f"checkpoint must name a folder, and {folder} is a file: pass another path.",
    )
    shared = mesh is not None and is_shared(mesh)
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if not shared or jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for stray in folder.glob(".chunk-*.tmp"):  # of a kill in the middle of a write
            stray.unlink(missing_ok=True)
    metadata = {
        "key": f"{implementation} {raw.tobytes().hex()}",
        "lanes": lanes,
        # The program's text holds fn's operations and the numbers that fn closes over.
        "program": hashlib.sha256(program.lower(raw, np.int32(0)).as_text().encode()).hexdigest(),
        "versions": f"{jax.__version__} {device.device_kind}",
    }
    leaves = [
        jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        for leaf in jax.tree.leaves(template)
    ]
    return Store(folder, metadata, leaves, shared)


def _plain(array: np.ndarray) -> np.ndarray:
    """The bits of small floats (bfloat16 and such), which files do not know, as unsigned integers;
    other arrays as they are.
    """
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_shared(mesh: Mesh) -> bool:
    """Whether the mesh has devices of several processes."""
    return len({device.process_index for device in mesh.devices.flat}) > 1
