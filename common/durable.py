"""Files that are whole or not there: written beside, flushed to the disk, and moved into place.

Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

OWNER_ONLY: Final = 0o600
READABLE: Final = 0o644


def write_durably(path: Path, content: bytes, *, mode: int = READABLE) -> None:
    """Replace `path` by `content` at once: a reader, or a machine that loses power, sees the old file or the new one.

    The file has `mode` before the first byte is in it, so a key is never readable for others, not for a moment.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask says
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        move_durably(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def move_durably(source: Path, target: Path) -> None:
    """Rename within a folder, and flush the folder so that the new name survives a power cut."""
    source.replace(target)
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
