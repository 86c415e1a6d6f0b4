"""Memory that one thread has freed is what the next one takes."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading
from concurrent.futures import ThreadPoolExecutor
from common.memory import share_one_pool

THREADS, BLOCKS = 8, 16
if {shares}:
    assert share_one_pool()
everybody = threading.Barrier(THREADS)

def use():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    blocks = [bytearray(1 << 20) for _ in range(BLOCKS)]
    blocks.clear()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

with ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(lambda _: everybody.wait(), range(THREADS)))  # every thread is there
    faults = [pool.submit(use).result() for _ in range(40)]
print(sum(faults[8:]) // len(faults[8:]))
"""


def faults_of_a_later_use(*, shares: bool) -> int:
    """Page faults of a thread that takes and frees 16 MiB (4,096 pages), once every thread may have done so before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(shares=shares)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such settings")
def test_blocks_that_one_thread_has_freed_are_used_by_the_others_without_a_page_fault():
    assert faults_of_a_later_use(shares=True) < 40
    assert faults_of_a_later_use(shares=False) > 1000
