"""One of several coordinator processes, for the tests of replicas: it dies of the events of `faulty_coordinator`.

    python -m tests.system.faulty_replica EVENTS FOLDER DATA serve --config FILE

FOLDER is one for all replicas: whoever reaches an event first dies of it. What comes after is another replica, as a
pod that is made anew is: it goes by another name, so that a lease of the dead one has to run out first. Leases are
shorter than usual, to be waited for less.
"""

from __future__ import annotations

import importlib
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

from coordinator.__main__ import main
from coordinator.driver import loop
from coordinator.replica import REPLICA_FILE
from tests.system.faulty_coordinator import LOADED_BEFORE_THE_FORK, install
from tests.system.kills import Kills, alive_through

LEASE: Final = timedelta(seconds=1)


def serve(data: Path, arguments: list[str]) -> int:
    (data / REPLICA_FILE).unlink(missing_ok=True)
    return main(arguments)


if __name__ == "__main__":
    for name in (*LOADED_BEFORE_THE_FORK, "coordinator.store.signals"):
        importlib.import_module(name)
    loop.LEASE = LEASE  # type: ignore[misc]
    told = Kills.parse(*sys.argv[1:3])
    install(told)
    alive_through(told, lambda: serve(Path(sys.argv[3]), sys.argv[4:]))
