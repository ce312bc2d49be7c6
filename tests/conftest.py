"""One regime for all tests: float64 available (float32 is asked for by dtype), strict promotion,
two devices, compilations cached across runs; without slow tests, programs that are compiled fast.
"""

import gc
import os
import pathlib

import jax
import pytest

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # several test processes may share a GPU
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)  # so that what a mesh asks of a kernel can be tested
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
# Small programs too: they are two fifths of all, and reading one takes a sixth of compiling it.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_configure(config):
    """Most of a run is compilation, which takes half the time without optimisation. What is slow,
    and the notebooks, which run in processes of their own, is compiled as for users; so is
    everything with `-m ""`, as `.ci/run` has it for some files.
    """
    if "not slow" in config.option.markexpr:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_code():
    """A compiled function holds memory mappings until it is dropped. A process may have 65,530 of
    them on Linux; a whole run needs more.
    """
    yield
    jax.clear_caches()


def pytest_collection_finish():
    """What is imported stays: garbage is not looked for in it, and less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
