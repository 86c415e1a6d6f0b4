"""What processes cost, as the kernel counts it: CPU seconds, and the most memory that was resident.

CPU seconds hold on a busy machine where wall time does not; `yardstick` says how fast the machine was meanwhile.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MEBIBYTE: Final = 1024 * 1024
TICKS: Final = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS: Final = 0.05
TRIES: Final = 5


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def status_mib(pid: int, name: str) -> float:
    """One of the memory lines of /proc/PID/status, such as VmHWM (peak, mapped files included) or RssAnon."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel does not tell {name} of process {pid}")


@dataclass(frozen=True, slots=True)
class Peak:
    """MiB. resident: with pages of mapped files, which the kernel takes back when it likes. anonymous: without."""

    resident: float
    anonymous: float


class MemoryWatch:
    """Watches processes until the block ends. The kernel keeps no peak of RssAnon, so that one is sampled."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._anonymous = dict.fromkeys(pids, 0.0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def peak(self, name: str) -> Peak:
        """Call while the process still runs."""
        return Peak(round(status_mib(self._pids[name], "VmHWM"), 1), round(self._anonymous[name], 1))

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            for name, pid in self._pids.items():
                try:
                    self._anonymous[name] = max(self._anonymous[name], status_mib(pid, "RssAnon"))
                except (OSError, RuntimeError):
                    continue


def yardstick(folder: Path, mebibytes: int = 64) -> dict[str, float]:
    """MiB per CPU second of a plain copy, of SHA-256 and of a new file in `folder`, on this machine, now.

    A file's pages are fresh ones each time; where a virtual machine must ask its host for them, that dominates.
    """
    content, copy = bytearray(os.urandom(mebibytes * MEBIBYTE)), bytearray(mebibytes * MEBIBYTE)
    memoryview(copy)[:] = content  # touched once, so that page faults are not part of what is timed
    begun = time.thread_time()
    memoryview(copy)[:] = content
    copied = time.thread_time()
    hashlib.sha256(content).digest()
    hashed = time.thread_time()
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(8):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    written = time.thread_time()
    return {
        "memcpy_mib_per_cpu_second": round(mebibytes / (copied - begun)),
        "sha256_mib_per_cpu_second": round(mebibytes / (hashed - copied)),
        "file_write_mib_per_cpu_second": round(8 * mebibytes / (written - hashed)),
    }


def watch_memory() -> float:
    """Let this process's peak begin here; MiB that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib(os.getpid(), "VmRSS")


def extra_mib(before: float) -> float:
    """MiB by which the peak went beyond `before`."""
    return round(status_mib(os.getpid(), "VmHWM") - before, 2)


def best(work: Callable[[], object], clock: Callable[[], float] = time.thread_time, tries: int = TRIES) -> float:
    """Least seconds of several tries."""
    seconds = math.inf
    for _ in range(tries):
        begun = clock()
        work()
        seconds = min(seconds, clock() - begun)
    return seconds
