"""`run_trials`: many trials, vmapped, in chunks of bounded memory, or over a device mesh."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec as P

from jaxsac import _checks, _files
from jaxsac._arguments import anything, arguments, flag, function, key, size
from jaxsac.trials.store import is_key, is_shared, open_store

_AXIS = "trials"


@arguments(
    fn=function("(key) -> arrays"),
    key=key(),
    num_trials=size(1),
    batch_size=size(1),
    mesh=anything("None, or a jax.sharding.Mesh"),
    progress=flag(),
    checkpoint=anything("None, or the path of a folder"),
)
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

    Trial i gets the same key whatever the other arguments are, and its numbers are the same up to
    rounding: products may round differently in a batch of another shape. (Keys of jax's "rbg" kind
    draw by batch: there only the keys are the same.) Traced once per call, however many chunks, and
    not again in later calls with the same function object and chunk size: define `fn` once, a new
    lambda is a new function. As under `jax.jit`, what `fn` closes over is read when it is traced.
    Works inside `jit`, `vmap` and `grad`, without `progress` and `checkpoint`.

    * `fn`: takes one random key and returns any pytree of arrays (a `Solution` too).
    * `key`: a random key.
    * `num_trials`: ≥ 1.
    * `batch_size`: ≥ 1, at most this many trials at a time, over all devices. The chunks are equal,
      the last one filled up with further trials that are dropped, so there is one compilation;
      working memory is that of one chunk, and the results gather on the host.
    * `mesh`: devices that share the trials of each chunk, e.g.
      `jax.make_mesh((jax.device_count(),), ("trials",))`; none waits for another inside a chunk,
      and any number of trials will do. Under `jax.distributed`, the same call in every process with
      a mesh of the devices of all gives every process all results.
    * `progress`: a bar on stderr (tqdm), one tick a chunk. Needs `batch_size`.
    * `checkpoint`: a folder (made when missing) for finished chunks. Needs `batch_size`. After a
      kill at any moment the same call goes on and ends bitwise equal to an undisturbed run; at most
      one chunk is computed again. More trials in chunks of the same size reuse what is there. One
      run per folder at a time.

    Returns: the results, every leaf with a new leading axis [num_trials].

    Raises: ValueError for num_trials or batch_size < 1, and for `progress` or `checkpoint` without
    `batch_size` or with traced values; its subclass `jaxsac.FileError` for a damaged checkpoint, or
    one of another key, chunk size, function or data.
    """
    _checks.require(mesh is None or isinstance(mesh, Mesh), "mesh must be a jax.sharding.Mesh.")
    by_chunk = progress or checkpoint is not None
    if batch_size is None:
        _checks.require(
            not by_chunk, "progress and checkpoint go chunk by chunk: pass batch_size as well."
        )
        batch_size = num_trials
    plan = _plan(num_trials, batch_size, mesh)
    raw, implementation = _raw_key(key)
    if _checks.is_concrete(raw):
        program = _program(fn, plan.lanes, mesh, implementation)
        if plan.num_chunks == 1 and mesh is None and not by_chunk:
            return program(raw, np.int32(0))
        results = _by_chunk(program, np.asarray(raw), implementation, plan, progress, checkpoint)
        if _checks.is_concrete(results):
            return results
    # Traced, by the key or by what fn closes over: one program for all chunks.
    _checks.require(
        not by_chunk,
        "progress and checkpoint need concrete values: call run_trials outside jit, vmap and grad,"
        " or drop them.",
    )
    return jax.jit(functools.partial(_all_chunks, fn, plan, implementation))(raw)


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
    return Mesh(mesh.devices.reshape(-1), (_AXIS,))


def _raw_key(key: jax.Array) -> tuple[jax.Array, Any]:
    """The key's numbers, which any process can feed to a program over all devices, and how to make
    a key of them again.
    """
    if is_key(key):
        return jax.random.key_data(key), jax.random.key_impl(key)
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
        lambda raw, first: consecutive(raw, first + lax.axis_index(_AXIS) * share, share),
        mesh=devices,
        in_specs=(P(), P()),
        out_specs=P(_AXIS),
        # fn is anyone's: its loops may start from constants, which the check would refuse.
        check_vma=False,
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
        # now, when all are near: processes that meet for the first time give up after 30 s as well
        _wait_for_all(plan.mesh)
    store = (
        None
        if checkpoint is None
        else open_store(checkpoint, program, raw, implementation, plan.lanes, plan.mesh, template)
    )
    buffers: list[np.ndarray] = []
    with _progress_bar(plan.num_trials) if progress else contextlib.nullcontext() as bar:
        for number in range(plan.num_chunks):
            first = number * plan.lanes
            count = min(plan.lanes, plan.num_trials - first)
            leaves = None if store is None else store.read(number)
            if leaves is None:
                results = program(raw, np.int32(first))
                if not _checks.is_concrete(results):
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


def _to_host(leaf: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """The whole array, wherever its parts are; of random keys, their numbers."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if mesh is not None and not leaf.is_fully_addressable:
        _wait_for_all(mesh)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _wait_for_all(mesh: Mesh) -> None:
    """Return when every process of the mesh has come here: on CPUs a sum waits for the last one, a
    gather gives up after 30 s.
    """
    if is_shared(mesh):
        jax.block_until_ready(_sum_over_devices(mesh)())


@functools.lru_cache(maxsize=32)
def _sum_over_devices(mesh: Mesh) -> Any:
    return jax.jit(
        jax.shard_map(
            lambda: lax.psum(lax.axis_index(_AXIS), _AXIS),
            mesh=_line(mesh),
            in_specs=(),
            out_specs=P(),
        )
    )


def _from_host(buffer: np.ndarray, kind: jax.ShapeDtypeStruct) -> jax.Array:
    if is_key(kind):
        return jax.random.wrap_key_data(
            jnp.asarray(buffer), impl=jax.random.key_impl(jnp.empty((), kind.dtype))
        )
    return jnp.asarray(buffer)
