"""What ran the benchmark, and how fast it copies and multiplies."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.harness.timing import time_interleaved

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "equinox", "scipy", "jaxsac")


def machine_record() -> dict[str, Any]:
    """CPU, cores, device, versions and the commit of the code: no names of hosts, users or
    folders.
    """
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "x64": bool(jax.config.read("jax_enable_x64")),
        "versions": {"python": platform.python_version()}
        | {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def card_rates(dtype: str, *, smoke: bool = False) -> dict[str, float]:
    """`measured_rates`, the matrix product at the device's default precision (TF32 on some), and
    GB/s of copies from and to numpy.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    side = 64 if smoke else 1024 if on_cpu else 8192
    square = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    array = np.ones((side, side), dtype)
    times = time_interleaved(
        {
            "gemm": lambda: product(square, square),
            "to": lambda: jax.device_put(array, may_alias=False),
            "from": lambda: np.array(square + 1),
        },
        min_seconds=0.05 if smoke else 1.0,
    )
    return measured_rates(dtype, smoke=smoke) | {
        "gemm_default_gflop_per_s": 2 * side**3 / times["gemm"].minimum / 1e9,
        "to_device_gb_per_s": array.nbytes / times["to"].minimum / 1e9,
        "from_device_gb_per_s": array.nbytes / times["from"].minimum / 1e9,
    }


def measured_rates(dtype: str, *, smoke: bool = False) -> dict[str, float]:
    """The roofline of this machine, now: GB/s of copies (bytes read and written) and of reads,
    GFLOP/s of a square matrix product.

    The arrays outgrow the caches of most machines. Copies go in place, so that the pages are there;
    reads are a matrix-vector product. Products ask for `precision="highest"`, as gradients and
    certificates do.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    rows, columns = (64, 256) if smoke else (4096, 4096) if on_cpu else (32768, 4096)
    side = 64 if smoke else 1024 if on_cpu else 8192
    passes = 4
    large = jnp.ones((rows, columns), dtype)
    vector = jnp.ones(columns, dtype)
    square = jnp.ones((side, side), dtype)
    copies = jax.jit(lambda x: lax.fori_loop(0, passes, lambda _, y: y + 1, x), donate_argnums=0)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision="highest"))
    buffer = [jnp.copy(large)]

    def copy() -> jax.Array:
        buffer[0] = copies(buffer[0])
        return buffer[0]

    times = time_interleaved(
        {
            "copy": copy,
            "read": lambda: product(large, vector),
            "gemm": lambda: product(square, square),
        },
        min_seconds=0.05 if smoke else 2.0,
    )
    return {
        "copy_gb_per_s": 2 * passes * large.nbytes / times["copy"].minimum / 1e9,
        "read_gb_per_s": large.nbytes / times["read"].minimum / 1e9,
        "gemm_gflop_per_s": 2 * side**3 / times["gemm"].minimum / 1e9,
    }


def _cpu_model() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the checkout that holds this file, with "+changes" when tracked files differ
    from it.
    """
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
