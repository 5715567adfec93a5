"""The process's memory heap: keep what is freed, for loops that allocate and free the same large arrays again and again."""

from __future__ import annotations

import numpy as np

# The largest block up to which glibc may move its threshold for memory that is mapped and unmapped one by one (DEFAULT_MMAP_THRESHOLD_MAX).
_LARGEST = 32 * 2**20


def keep_heap() -> None:
    """Make glibc's allocator serve arrays up to 32 MiB from its heap and give back only what exceeds 64 MiB; no effect elsewhere.

    Fresh pages are faulted in and zeroed by the kernel; an image pipeline that maps its arrays anew for every image spends most of its
    time there (measured: 2.5 times as long per image). Freeing one mapped block moves the allocator's two thresholds to it and its double.
    """
    block = np.empty(_LARGEST - 2**16, np.uint8)
    del block
