"""Start a program that ends with the process that started it, also when that one is killed with -9.

    python leash.py PARENT_PID PROGRAM ARGUMENTS...

Becomes the program (exec), so process id, signals and exit code are the program's own. Only Linux can tie a process
to its parent's life; elsewhere the program just starts, and what is left over is ended at the demo's next start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PARENT_GONE: Final = 3


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`. Ends with PARENT_GONE if the parent has died meanwhile."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Had it died before the call above, nobody would tell us.
        if os.getppid() != parent:
            sys.exit(PARENT_GONE)
    os.execv(command[0], command)  # noqa: S606  our own command line, without a shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
