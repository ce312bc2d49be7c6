"""Many trials of anything: vmapped, in chunks of bounded memory, or over a device mesh, one
argument apart; and their summary.
"""

import functools
import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxsac import _files
from jaxsac._checks import is_concrete, require, static_integer

AXIS = "trials"
KIND = "chunk of trials"


def run_trials(
    fn: Callable[[jax.Array], Any],
    key: jax.Array,
    num_trials: int,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    checkpoint: _files.PathLike | None = None,
) -> Any:
    """Run `num_trials` independent trials of `fn` and stack their results.

        results[i] = fn(fold_in(key, i)),        i = 0, ..., num_trials - 1

    `fn` takes one random key and returns any pytree of arrays (a `Solution` too); every leaf of the
    results has a new leading axis [num_trials]. Trial i gets the same key whatever the other
    arguments are, and its numbers are the same up to rounding: products may round differently in a
    batch of another shape. (Keys of jax's "rbg" kind draw by batch: there only the keys are the
    same.)

    batch_size: at most this many trials at a time, over all devices. The chunks are equal, the last
    one filled up with further trials
        that are dropped, so there is one compilation; working memory is that of one chunk, and the
        results gather on the host.
    mesh: devices that share the trials of each chunk, e.g. `jax.make_mesh((jax.device_count(),),
    ("trials",))`; none waits for another
        inside a chunk, and any number of trials will do. Under `jax.distributed`, the same call in
        every process with a mesh of the devices of all gives every process all results.
    progress: a bar on stderr (tqdm), one tick a chunk. Needs `batch_size`. checkpoint: a folder
    (made when missing) for finished chunks. Needs `batch_size`. After a kill at any moment the same
    call goes on and
        ends bitwise equal to an undisturbed run; at most one chunk is computed again. More trials
        in chunks of the same size reuse what is there. A damaged file, or a folder of another key,
        chunk size, function or data, is refused. One run per folder at a time.

    Traced once per call, however many chunks, and not again in later calls with the same function
    object and chunk size: define `fn` once, a new lambda is a new function. As under `jax.jit`,
    what `fn` closes over is read when it is traced. Works inside `jit`, `vmap` and `grad`, without
    `progress` and `checkpoint`.

    Raises `ValueError` for num_trials or batch_size < 1, and for `progress` or `checkpoint` without
    `batch_size` or with traced values; its subclass `FileError` for a checkpoint that does not fit.
    """
    num_trials = static_integer("num_trials", num_trials, 1)
    by_chunk = progress or checkpoint is not None
    if batch_size is None:
        require(not by_chunk, "progress and checkpoint go chunk by chunk: pass batch_size as well.")
        batch_size = num_trials
    plan = _plan(num_trials, static_integer("batch_size", batch_size, 1), mesh)
    raw, implementation = _raw_key(key)
    if is_concrete(raw):
        program = _program(fn, plan.lanes, mesh, implementation)
        if plan.num_chunks == 1 and mesh is None and not by_chunk:
            return program(raw, np.int32(0))
        results = _by_chunk(program, np.asarray(raw), implementation, plan, progress, checkpoint)
        if is_concrete(results):
            return results
    # Traced, by the key or by what fn closes over: one program for all chunks.
    require(
        not by_chunk,
        "progress and checkpoint need concrete values: call run_trials outside jit, vmap and grad, or drop them.",
    )
    return jax.jit(functools.partial(_all_chunks, fn, plan, implementation))(raw)


class Summary(NamedTuple):
    """Statistics over trials; every field but `quantiles` has the tree of the results without their
    trial axis.

    mean, standard_error: of the finite values; standard_error = standard deviation / sqrt(number of
    finite values), NaN for fewer than 2. quantiles: of the finite values, with a leading axis
    [number of quantiles]; NaN when there are none. num_nonfinite: int32, how many trials were NaN
    or infinite there and are left out of all of the above. Where it is not 0 the summary
        speaks for the surviving trials only: look at the others before trusting it.
    """

    mean: Any
    standard_error: Any
    quantiles: Any
    num_nonfinite: Any

    def band(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """(lower, upper): the normal confidence band of the mean, mean ± z standard_error with
        P(|N(0, 1)| ≤ z) = `confidence`.
        """
        z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
        ends = [
            jax.tree.map(lambda m, e, sign=sign: m + sign * z * e, self.mean, self.standard_error)
            for sign in (-1, 1)
        ]
        return ends[0], ends[1]


def summarise(
    results: Any, *, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
) -> Summary:
    """Summarise a pytree of trial results over the leading axis of every leaf: mean, standard
    error, quantiles, number of non-finite.

        mean = sum_i x_i / n,   standard_error = sqrt(sum_i (x_i - mean)^2 / (n - 1) / n)
        (over the n finite values)

    Leaves [num_trials, ...] of any real dtype; integers and booleans count as default floats, so
    that the mean of a flag is its rate. Quantiles interpolate linearly. Runs under `jit`; raises
    `ValueError` for leaves without a common trial axis and quantiles outside [0, 1].
    """
    leaves = jax.tree.leaves(results)
    require(
        all(jnp.ndim(leaf) > 0 for leaf in leaves),
        "results must have a leading trial axis in every leaf, as run_trials gives them.",
    )
    sizes = {jnp.shape(leaf)[0] for leaf in leaves}
    require(
        len(sizes) <= 1 and 0 not in sizes,
        f"results must have one common number of trials >= 1 in all leaves, got {sorted(sizes)}.",
    )
    levels = np.asarray(quantiles, np.float64)
    require(
        levels.ndim == 1 and bool(np.all((levels >= 0) & (levels <= 1))),
        f"quantiles must be a list within [0, 1], got {quantiles}.",
    )
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        require(
            dtype == jnp.bool_
            or (
                jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
            ),
            f"results must hold real numbers, got a leaf of {dtype}: select the numbers before summarising.",
        )
    return _summarise(results, levels.astype(jnp.result_type(float)))


@jax.jit
def _summarise(results: Any, levels: jax.Array) -> Summary:
    parts = [_summarise_leaf(leaf, levels) for leaf in jax.tree.leaves(results)]
    structure = jax.tree.structure(results)
    return Summary(
        *(
            structure.unflatten([getattr(part, field) for part in parts])
            for field in Summary._fields
        )
    )


def _summarise_leaf(leaf: jax.Array, levels: jax.Array) -> Summary:
    values = jnp.asarray(leaf)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.result_type(float))
    finite = jnp.isfinite(values)
    count = finite.sum(0, keepdims=True).astype(values.dtype)
    # Divided before they are summed: a sum of large values could overflow.
    mean = jnp.where(count > 0, jnp.where(finite, values / count, 0).sum(0, keepdims=True), jnp.nan)
    deviation = jnp.where(finite, values - mean, 0)
    scale = jnp.abs(deviation).max(
        0, keepdims=True
    )  # squares of what is far from 1 leave the range of float32
    relative = deviation / jnp.where(scale > 0, scale, 1)
    variance = (relative**2).sum(0, keepdims=True) / jnp.maximum(count - 1, 1)
    return Summary(
        mean=mean[0],
        standard_error=jnp.where(
            count > 1, scale * jnp.sqrt(variance / jnp.maximum(count, 1)), jnp.nan
        )[0],
        quantiles=jnp.nanquantile(
            jnp.where(finite, values, jnp.nan), levels.astype(values.dtype), axis=0
        ),
        num_nonfinite=(~finite).sum(0, dtype=jnp.int32),
    )


class _Plan(NamedTuple):
    """`num_chunks` chunks of `lanes` trials each, shared evenly by the devices of `mesh`."""

    num_trials: int
    lanes: int
    num_chunks: int
    mesh: Mesh | None


def _plan(num_trials: int, batch_size: int, mesh: Mesh | None) -> _Plan:
    """As few chunks as `batch_size` allows, and then as small: 65 trials by 64 are two chunks of
    33.
    """
    num_devices = 1 if mesh is None else mesh.devices.size
    batch_size = max(batch_size, num_devices)
    chunks = math.ceil(num_trials / (batch_size // num_devices * num_devices))
    lanes = math.ceil(num_trials / (chunks * num_devices)) * num_devices
    return _Plan(num_trials, lanes, math.ceil(num_trials / lanes), mesh)


def _line(mesh: Mesh) -> Mesh:
    """The same devices along one axis."""
    return Mesh(mesh.devices.reshape(-1), (AXIS,))


def _is_shared(mesh: Mesh) -> bool:
    """Whether the mesh has devices of several processes."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def _raw_key(key: jax.Array) -> tuple[jax.Array, Any]:
    """The key's numbers, which any process can feed to a program over all devices, and how to make
    a key of them again.
    """
    require(hasattr(key, "dtype"), "key must be a random key: jax.random.key(seed).")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        require(
            key.ndim == 0,
            f"key must be one random key, got shape {list(key.shape)}: run_trials makes the others itself.",
        )
        return jax.random.key_data(key), jax.random.key_impl(key)
    require(
        key.ndim == 1 and key.dtype == np.uint32, "key must be a random key: jax.random.key(seed)."
    )
    return key, None


def _program(fn: Callable, lanes: int, mesh: Mesh | None, implementation: Any) -> Any:
    """The jitted (raw key, first trial) -> results of `lanes` trials: the same object again for the
    same arguments, so it traces once.
    """
    try:
        return _cached_program(fn, lanes, mesh, implementation)
    except TypeError:  # fn cannot be hashed
        return _cached_program.__wrapped__(fn, lanes, mesh, implementation)


@functools.lru_cache(maxsize=32)
def _cached_program(fn: Callable, lanes: int, mesh: Mesh | None, implementation: Any) -> Any:
    return jax.jit(functools.partial(_chunk, fn, lanes, mesh, implementation))


def _chunk(
    fn: Callable,
    lanes: int,
    mesh: Mesh | None,
    implementation: Any,
    raw: jax.Array,
    first: jax.Array,
) -> Any:
    """Trials first, ..., first + lanes - 1. Each device makes the keys of its own trials: nothing
    is exchanged.
    """

    def consecutive(raw: jax.Array, first: jax.Array, count: int) -> Any:
        key = raw if implementation is None else jax.random.wrap_key_data(raw, impl=implementation)
        indices = first + jnp.arange(count, dtype=jnp.int32)
        return jax.vmap(fn)(jax.vmap(jax.random.fold_in, (None, 0))(key, indices))

    if mesh is None:
        return consecutive(raw, first, lanes)
    devices = _line(mesh)
    share = lanes // devices.size
    return jax.shard_map(
        lambda raw, first: consecutive(raw, first + lax.axis_index(AXIS) * share, share),
        mesh=devices,
        in_specs=(P(), P()),
        out_specs=P(AXIS),
        check_vma=False,  # fn is anyone's: its loops may start from constants, which the check would refuse
    )(raw, first)


def _all_chunks(fn: Callable, plan: _Plan, implementation: Any, raw: jax.Array) -> Any:
    def chunk(first: jax.Array) -> Any:
        return _chunk(fn, plan.lanes, plan.mesh, implementation, raw, first)

    if plan.num_chunks == 1:
        results = chunk(jnp.int32(0))
    else:
        results = lax.map(chunk, plan.lanes * jnp.arange(plan.num_chunks, dtype=jnp.int32))
        results = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)
    return jax.tree.map(lambda leaf: leaf[: plan.num_trials], results)


def _by_chunk(
    program: Any, raw: np.ndarray, implementation: Any, plan: _Plan, progress: bool, checkpoint: Any
) -> Any:
    """Run the chunks one after the other and gather them on the host; what comes out traced is
    returned as it is.
    """
    template = program.eval_shape(raw, np.int32(0))
    if plan.mesh is not None:
        _wait_for_all(
            plan.mesh
        )  # now, when all are near: processes that meet for the first time give up after 30 s as well
    store = (
        None
        if checkpoint is None
        else _open_store(checkpoint, program, raw, implementation, plan, template)
    )
    buffers: list[np.ndarray] = []
    bar = _progress_bar(plan.num_trials) if progress else None
    try:
        for number in range(plan.num_chunks):
            first = number * plan.lanes
            count = min(plan.lanes, plan.num_trials - first)
            leaves = None if store is None else store.read(number)
            if leaves is None:
                results = program(raw, np.int32(first))
                if not is_concrete(results):
                    return results
                leaves = [_to_host(leaf, plan.mesh) for leaf in jax.tree.leaves(results)]
                if store is not None:
                    store.write(number, leaves)
            if not buffers:
                buffers = [
                    np.empty((plan.num_trials, *leaf.shape[1:]), leaf.dtype) for leaf in leaves
                ]
            for buffer, leaf in zip(buffers, leaves, strict=True):
                buffer[first : first + count] = leaf[:count]
            if bar is not None:
                bar.update(count)
    finally:
        if bar is not None:
            bar.close()
    kinds, structure = jax.tree.flatten(template)
    return structure.unflatten(
        [_from_host(buffer, kind) for buffer, kind in zip(buffers, kinds, strict=True)]
    )


def _progress_bar(total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "progress=True needs tqdm: `pip install tqdm`, or pass progress=False."
        ) from None
    return tqdm(total=total, unit="trial", disable=jax.process_index() != 0)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """The whole array, wherever its parts are; of random keys, their numbers."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if mesh is not None and not leaf.is_fully_addressable:
        _wait_for_all(mesh)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _wait_for_all(mesh: Mesh) -> None:
    """Return when every process of the mesh has come here: on CPUs a sum waits for the last one, a
    gather gives up after 30 s.
    """
    if _is_shared(mesh):
        jax.block_until_ready(_sum_over_devices(mesh)())


@functools.lru_cache(maxsize=32)
def _sum_over_devices(mesh: Mesh) -> Any:
    return jax.jit(
        jax.shard_map(
            lambda: lax.psum(lax.axis_index(AXIS), AXIS),
            mesh=_line(mesh),
            in_specs=(),
            out_specs=P(),
        )
    )


def _from_host(buffer: np.ndarray, kind: jax.ShapeDtypeStruct) -> jax.Array:
    if _is_key(kind):
        return jax.random.wrap_key_data(
            jnp.asarray(buffer), impl=jax.random.key_impl(jnp.empty((), kind.dtype))
        )
    return jnp.asarray(buffer)


class _Store(NamedTuple):
    """A folder with one file per finished chunk. Each says which program and key made it, and is
    refused by any other.
    """

    folder: Path
    metadata: dict[str, Any]
    leaves: list[jax.ShapeDtypeStruct]
    shared: bool  # several processes work on each chunk: the first one reads and writes, and tells the others

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
        _files.save(self._path(number), KIND, arrays, self.metadata | {"chunk": number})

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:06d}.npz"

    def _load(self, number: int) -> list[np.ndarray] | None:
        path = self._path(number)
        if not path.exists():
            return None
        arrays, metadata = _files.load(path, KIND)
        for name, value in (self.metadata | {"chunk": number}).items():
            if metadata.get(name) != value:
                raise _files.FileError(
                    f"{path}: made with {_DIFFERENCES[name]}: pass a new folder, or make the call that it belongs to."
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


def _open_store(
    checkpoint: Any, program: Any, raw: np.ndarray, implementation: Any, plan: _Plan, template: Any
) -> _Store:
    folder = Path(checkpoint)
    require(
        not folder.exists() or folder.is_dir(),
        f"checkpoint must name a folder, and {folder} is a file: pass another path.",
    )
    shared = plan.mesh is not None and _is_shared(plan.mesh)
    device = jax.devices()[0] if plan.mesh is None else plan.mesh.devices.flat[0]
    if not shared or jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for stray in folder.glob(".chunk-*.tmp"):  # of a kill in the middle of a write
            stray.unlink(missing_ok=True)
    metadata = {
        "key": f"{implementation} {raw.tobytes().hex()}",
        "lanes": plan.lanes,
        # The program's text holds fn's operations and the numbers that fn closes over.
        "program": hashlib.sha256(program.lower(raw, np.int32(0)).as_text().encode()).hexdigest(),
        "versions": f"{jax.__version__} {device.device_kind}",
    }
    leaves = [
        jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for leaf in jax.tree.leaves(template)
    ]
    return _Store(folder, metadata, leaves, shared)


def _plain(array: np.ndarray) -> np.ndarray:
    """The bits of small floats (bfloat16 and such), which files do not know, as unsigned integers;
    other arrays as they are.
    """
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
