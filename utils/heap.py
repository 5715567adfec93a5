"""The process's memory heap: keep what is freed, for loops that allocate and free the same large arrays again and again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_BLOCK = 2**30


def keep_heap() -> None:
    """Make glibc's allocator serve blocks up to 1 GiB from its heap and keep what is freed for the next; no effect elsewhere.

    Fresh pages are faulted in and zeroed by the kernel; a pipeline that maps its arrays anew for every image spends much of its time there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
