"""The C library's allocator, told to keep what arrays give back.

Arrays of megabytes that come and go make glibc hand pages to the kernel and fetch them again, zeroed, a fault for each
4 KiB: a tenth or more of a proof's time. Other C libraries have no such setting and are left alone; so are, in part,
the heaps of other threads than the first, which are 64 MiB large at most and go back when they are empty.
"""

from __future__ import annotations

import ctypes

# From malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

KEPT_BYTES = 256 << 20
"""Freed memory at the heap's end that is kept for the next arrays."""
LARGEST_HEAP_BLOCK = 32 << 20
"""Blocks below this come from the heap, so that they can be kept: the largest value that mallopt(3) documents."""


def keep_freed_memory() -> bool:
    """Set both thresholds for this process; returns whether the C library has them."""
    mallopt = getattr(ctypes.pythonapi, "mallopt", None)  # among the symbols of this process are its C library's
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK))
