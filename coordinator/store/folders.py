"""Folders whose entries survive a power failure: a file is durable when its content and its name are."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

# What lies below is the coordinator's alone: masked updates, identities, digests of secrets.
FOLDER_MODE: Final = 0o700


def make_folders(path: Path) -> Path:
    """Make a folder and its missing parents. Returns the lowest of them that was there before. Raises OSError."""
    try:
        path.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        return path
    except FileNotFoundError:
        top = make_folders(path.parent)
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return top
    return path.parent


def sync_folders(path: Path, *, top: Path) -> None:
    """Return when the names in a folder and in those above it, up to `top`, are on durable storage. Raises OSError."""
    while True:
        sync_folder(path)
        if path == top:
            return
        path = path.parent


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on durable storage. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
