"""Benchmarks of jaxsac and its peers: `python -m benchmarks` lists the rooms, `python -m benchmarks
ROOM` runs one.
"""

import os

# Before numpy is imported: OpenBLAS threads and XLA's thread pool fight for the same cores. Peers
# get threads of their own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
