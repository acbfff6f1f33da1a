"""Memory that a step frees stays with the process until the next one needs it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_MAPPED = 32 * 2**20  # the largest that glibc takes
_NEVER = 2**31 - 1


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep glibc from giving memory back to the system after every step, which would map its pages anew.

    A step of training allocates the same tensors as the one before. Without this a third of the time of wide layers
    goes into page faults (benchmarks/README.md). Where the C library is another one, nothing is done.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MAPPED)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        # Twice the other threshold: where glibc's own adjustment ends up after large tensors.
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MAPPED)
        library.malloc_trim(0)
