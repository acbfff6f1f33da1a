"""The task graph and what runs it."""

import os

SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment of the head and of every worker: with one thread, sums of products have one order (contract 7)."""

# Libraries of linear algebra read it when they are loaded; workers inherit it.
os.environ.update(SINGLE_THREADED)
