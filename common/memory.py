"""How the C library keeps memory that was freed: pieces of tensors go back to the system at once."""

from __future__ import annotations

import ctypes
from typing import Final

# From glibc's malloc.h.
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

LARGE_BYTES: Final = 256 * 1024
ARENAS: Final = 2
_SETTINGS: Final = ((_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_ARENA_MAX, ARENAS))


def release_large_blocks() -> bool:
    """Have blocks of LARGE_BYTES and more mapped one by one and unmapped when freed. False without glibc.

    A service moves chunks of a mebibyte through many threads. glibc keeps such blocks, once one was freed, in an arena
    for each thread, and a process of 90 MiB grows to several hundred that nobody uses. Call before threads start.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in _SETTINGS)
