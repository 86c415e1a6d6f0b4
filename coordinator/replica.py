"""Which of the coordinators on one database this process is.

Leases are held in a replica's name. A killed process leaves its leases behind, and the one that takes its place must
go on at once and not wait until they run out: so the name is kept in the data folder, and a lock that the kernel drops
with its process says that nobody else uses it now.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

from common.errors import StorageFailed

REPLICA_FILE: Final = "replica"
NAME_BYTES: Final = 8
OWNER_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class Replica:
    """`name` is this process's alone for as long as the value lives."""

    name: str
    _lock: FileIO | None = field(repr=False, default=None)

    @classmethod
    def claim(cls, folder: Path) -> Replica:
        """The folder's name; a new one if there is none yet, or if another living process goes by it.

        Raises StorageFailed if the folder cannot be written to.
        """
        path = folder / REPLICA_FILE
        try:
            file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OWNER_ONLY), "r+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return cls(_new_name())
            name = file.read().decode(errors="replace").strip()
            if not _is_name(name):
                # Also what a power failure may leave of it: nothing depends on the name but how soon leases are free.
                name = _new_name()
                file.seek(0)
                file.truncate()
                file.write(f"{name}\n".encode())
            return cls(name, file)
        except OSError as error:
            raise StorageFailed(f"cannot write to {path}: {error.strerror}") from error


def is_in_use(folder: Path) -> bool:
    """Whether a living coordinator has claimed the folder. Raises StorageFailed if nobody can say."""
    path = folder / REPLICA_FILE
    try:
        with FileIO(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StorageFailed(f"cannot read {path}: {error.strerror}") from error


def _new_name() -> str:
    return secrets.token_hex(NAME_BYTES)


def _is_name(text: str) -> bool:
    return len(text) == 2 * NAME_BYTES and set(text) <= set("0123456789abcdef")
