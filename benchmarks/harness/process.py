"""Processes of their own: for peers, whose pins may clash with jax's and their threads with XLA's
(only .npy and JSON files are exchanged), and for rows that are to be as in a new process, whatever
ran before them.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

NOT_RUN = "not run"
PEERS = pathlib.Path(__file__).parents[1] / "peers"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


class PeerResult(NamedTuple):
    """What a peer answered. `status` is "ok", or "not run: ..." or "failed: ..." with the reason
    and nothing else in the record.
    """

    status: str
    arrays: dict[str, np.ndarray]
    numbers: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def run_peer(
    peer: str,
    arrays: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    python: str | None = None,
    threads: int = 1,
    timeout: float = 600.0,
) -> PeerResult:
    """Run the peer "ROOM/LIBRARY" of `benchmarks/peers` with the interpreter `python` (None: this
    one) and `threads` threads, and read its answer.

    `peers/ROOM/LIBRARY.py` defines `answer(arrays, settings)`, which times the library inside its
    own process and returns (arrays, numbers). A library that cannot be imported, or an interpreter
    that is not there, is "not run".
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for key, value in arrays.items():
            np.save(folder / f"in_{key}.npy", np.asarray(value), allow_pickle=False)
        (folder / "settings.json").write_text(json.dumps(dict(settings or {})))
        environment = os.environ | {variable: str(threads) for variable in THREAD_VARIABLES}
        environment.pop("PYTHONPATH", None)
        try:
            command = [python or sys.executable, str(PEERS / "serve.py"), peer, name]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout
            )
        except OSError as error:
            return PeerResult(f"{NOT_RUN}: no such interpreter ({type(error).__name__})", {}, {})
        except subprocess.TimeoutExpired:
            return PeerResult(f"failed: over {timeout:g} s", {}, {})
        answer = folder / "answer.json"
        if not answer.exists():
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return PeerResult(f"failed: {reason}", {}, {})
        numbers = json.loads(answer.read_text())
        status = numbers.pop("status")
        outputs = {
            path.stem.removeprefix("out_"): np.load(path, allow_pickle=False)
            for path in sorted(folder.glob("out_*.npy"))
        }
        return PeerResult(status, outputs, numbers)


def configure(dtype: str) -> None:
    """jax as benchmarks want it, before it is used."""
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # several processes may share a GPU
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update(
        "jax_num_cpu_devices", os.cpu_count() or 1
    )  # for rows that spread many problems; the others use the first
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # first calls are to be compiled, here and now


def in_new_process(dtype: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a process that starts now; both, and what is returned, must
    pickle.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, spawn, initializer=configure, initargs=(dtype,)
    ) as pool:
        return pool.submit(function, *arguments).result()
