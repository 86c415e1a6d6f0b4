"""Large blocks that a service has freed are not kept by the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# glibc maps a large block of its own at first, and keeps it for later ones once a block of that size was freed.
PROGRAM = """
import ctypes
from common.memory import release_large_blocks

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks".split()]
    _fields_ += [(name, ctypes.c_size_t) for name in "uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo
if {release}:
    assert release_large_blocks()
held = bytes(bytearray(8 << 20))
del held
before = mallinfo().hblks
held = bytearray(1 << 20)
print(mallinfo().hblks - before)
"""


def mapped_blocks(*, release: bool) -> int:
    """How many blocks of their own a mebibyte takes once a larger one was freed."""
    program = PROGRAM.format(release=release)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps nothing")
def test_a_large_block_goes_back_to_the_system_although_one_was_freed_before():
    assert mapped_blocks(release=True) == 1
    assert mapped_blocks(release=False) == 0
