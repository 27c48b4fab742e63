"""Let the C library keep freed memory for the next training step."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30  # free memory at the heap's end that is not returned to the system
LARGEST_HEAP_BYTES = 32 << 20  # blocks up to this size come from the heap; glibc allows no more


def keep_freed_memory() -> bool:
    """Make glibc reuse the memory of freed tensors.

    By default glibc returns large blocks to the system, and each step's tensors cause page faults again. Only Linux
    with glibc has this setting; elsewhere nothing changes.

    Returns:
        Whether glibc accepted the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
