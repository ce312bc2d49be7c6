"""One regime for all tests: float64 available (float32 is asked for by dtype), strict promotion,
two devices, compilations cached across runs.
"""

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
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True, scope="module")
def _release_compiled_code():
    """A compiled function holds memory mappings until it is dropped. A process may have 65,530 of
    them on Linux; a whole run needs more.
    """
    yield
    jax.clear_caches()
