"""How the C library keeps memory that was freed: one pool for all threads, from which blocks are used again."""

from __future__ import annotations

import ctypes
from typing import Final

# From glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

MAPPED_BYTES: Final = 32 * 1024 * 1024
"""Blocks from this size on are mapped one by one and unmapped when freed; glibc takes no higher threshold."""
KEPT_BYTES: Final = 64 * 1024 * 1024
"""Free memory at the pool's end that is not handed back to the system."""
ARENAS: Final = 1
_SETTINGS: Final = ((_M_MMAP_THRESHOLD, MAPPED_BYTES), (_M_TRIM_THRESHOLD, KEPT_BYTES), (_M_ARENA_MAX, ARENAS))


def share_one_pool() -> bool:
    """Have all threads of this process take and give back memory in one pool. False without glibc.

    A service moves chunks of a mebibyte through many threads. glibc would keep such blocks, once freed, in a pool for
    each thread, and a process of 90 MiB grows to several hundred that nobody uses; handing each block back to the
    system instead costs 256 page faults a block. In one pool the next chunk takes the last one's place. Call before
    threads start.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in _SETTINGS)
