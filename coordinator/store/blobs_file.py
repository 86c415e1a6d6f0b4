"""Blobs as files under one folder, for a coordinator on one host.

Owns the folder: `blobs/` holds them, `incoming/` what is being written or thrown away. Knows nothing of what they mean.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from common.errors import InvalidArgument, NotFound, StorageDenied, StorageFailed, StorageFull
from coordinator.store.blobs import check_key, check_range
from coordinator.store.folders import FOLDER_MODE, make_folders, sync_folder, sync_folders

_COPY_BYTES: Final = 1 << 20
# A blob may be handed out as a hard link, so nobody may write to it, its owner included.
_BLOB_MODE: Final = 0o400
# A folder can vanish under a write only through another process's `delete`; many in a row are something else.
_ATTEMPTS: Final = 8


class FileBlobStore:
    """A `BlobStore` in a folder. Several processes may share it, if one of them writes below a prefix at a time.

    The writes are our own, not obstore's: its LocalStore (object_store's local file system) renames a temporary file
    into place but calls fsync on neither the file nor the folder and offers no setting for it, so that a blob whose
    `put` has returned could be empty after a power failure. Here, file, folder and every folder that was made on the
    way are synced before a method returns.

    A key cannot also be the prefix of another one ("a" beside "a/b").
    """

    def __init__(self, root: Path) -> None:
        """Open the folder, making it if it is not there, and clear away what killed writers have left."""
        self._root = root.absolute()
        self._blobs = self._root / "blobs"
        self._incoming = self._root / "incoming"
        # Held while names change: a thread must not rely on a folder that another one has made and not synced yet.
        self._names = threading.Lock()
        with _storage_errors(self._root):
            top = make_folders(self._blobs)
            make_folders(self._incoming)
            sync_folders(self._blobs, top=top)
            self._scratch, self._lock = self._claim_scratch()

    def put(self, key: str, *content: bytes | memoryview) -> None:
        path = self._path(key)
        with _storage_errors(path):
            temporary = self._temporary()
            try:
                _write_new(temporary, content)
                self._publish(temporary, path, key)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with _storage_errors(path), io.FileIO(path) as file:
            if _is_movable(path, file):
                os.fchmod(file.fileno(), _BLOB_MODE)
                os.fsync(file.fileno())
                try:
                    # In one step: a file that was acknowledged in parts must not be lost between two names.
                    self._publish(path, target, key)
                    return
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
            temporary = self._temporary()
            try:
                _copy_new(file, temporary)
                self._publish(temporary, target, key)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(key, offset, length)
        with self._open(key) as file:
            size = os.fstat(file.fileno()).st_size
            wanted = max(size - offset, 0) if length is None else min(length, max(size - offset, 0))
            content = os.pread(file.fileno(), wanted, offset)
            if len(content) == wanted:  # The only case below 2 GiB, and the one without another copy.
                return content
            parts = [content]
            while (wanted := wanted - len(parts[-1])) and parts[-1]:
                offset += len(parts[-1])
                parts.append(os.pread(file.fileno(), wanted, offset))
            return b"".join(parts)

    def fetch(self, key: str, destination: Path) -> None:
        path = self._path(key)
        # Under another name first: a destination that exists is replaced in one step.
        arriving = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
        with _storage_errors(destination):
            try:
                with self._open(key) as file:
                    try:
                        os.link(path, arriving)
                    except OSError as error:
                        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOENT):
                            raise
                        _copy_new(file, arriving)
                os.replace(arriving, destination)
            finally:
                # Also after success: renaming one link of a file over another link of it leaves both.
                arriving.unlink(missing_ok=True)

    def size(self, key: str) -> int:
        with self._open(key) as file:
            return os.fstat(file.fileno()).st_size

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _storage_errors(path):
            return path.is_file()

    def keys(self, prefix: str) -> Iterator[str]:
        path = self._path(prefix) if prefix else self._blobs
        if path.is_file():
            yield prefix
            return
        with _storage_errors(path):
            yield from _walk(path, f"{prefix}/" if prefix else "")

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        with _storage_errors(path):
            # Out of sight in one step, so that a half-deleted folder is never seen, nor left by a kill.
            doomed = self._temporary()
            try:
                with self._names:
                    os.rename(path, doomed)
            except (FileNotFoundError, NotADirectoryError):
                return
            sync_folder(path.parent)
            if doomed.is_dir():
                shutil.rmtree(doomed)
            else:
                doomed.unlink()

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._blobs.joinpath(*key.split("/"))

    def _temporary(self) -> Path:
        return self._scratch / secrets.token_hex(8)

    @contextmanager
    def _open(self, key: str) -> Iterator[io.FileIO]:
        path = self._path(key)
        with _storage_errors(path):
            try:
                file = io.FileIO(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFound(f"there is no blob {key!r}") from None
            with file:
                yield file

    def _publish(self, temporary: Path, path: Path, key: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                with self._names:
                    self._make_folders(path.parent)
                    os.replace(temporary, path)
                break
            except (IsADirectoryError, NotADirectoryError, FileExistsError):
                raise InvalidArgument(f"blob key {key!r} is a prefix of another key, or the other way round") from None
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1 or not temporary.exists():
                    raise
        with suppress(FileNotFoundError):  # Deleted since, with its folder: there is nothing left to keep.
            sync_folder(path.parent)

    def _make_folders(self, path: Path) -> None:
        top = make_folders(path)
        if top != path:
            sync_folders(path.parent, top=top)

    def _claim_scratch(self) -> tuple[Path, io.FileIO]:
        """A folder of this store's own, locked for as long as it lives; folders without a living owner are removed.

        The kernel drops the lock with its process, however that ends, so leftovers are told from work in progress.
        """
        with io.FileIO(self._incoming / "lock", "w") as entry:
            fcntl.flock(entry, fcntl.LOCK_EX)
            for folder in self._incoming.iterdir():
                if folder.is_dir() and _is_abandoned(folder):
                    shutil.rmtree(folder)
            scratch = self._incoming / secrets.token_hex(8)
            scratch.mkdir(mode=FOLDER_MODE)
            lock = io.FileIO(scratch / "lock", "w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            return scratch, lock


def _is_movable(path: Path, file: io.FileIO) -> bool:
    """Whether nobody holds another name of the file, through which it could be changed when it is a blob."""
    about = os.fstat(file.fileno())
    return stat.S_ISREG(about.st_mode) and about.st_nlink == 1 and not path.is_symlink()


def _is_abandoned(folder: Path) -> bool:
    try:
        with io.FileIO(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _write_new(path: Path, content: Iterable[bytes | memoryview]) -> None:
    with io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _BLOB_MODE), "w") as file:
        for piece in content:
            left = memoryview(piece).cast("B")
            while left:
                left = left[file.write(left) or 0 :]
        os.fsync(file.fileno())


def _copy_new(source: io.FileIO, path: Path) -> None:
    with io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _BLOB_MODE), "w") as file:
        shutil.copyfileobj(source, file, _COPY_BYTES)
        os.fsync(file.fileno())


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    """Keys below a folder, in the order of the whole keys: "a-b/x" comes before "a/x"."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return  # Deleted meanwhile, or never there.
    for name in names:
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name)
        else:
            yield prefix + name


_KINDS: Final[Mapping[int, type[StorageFailed]]] = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EACCES: StorageDenied,
    errno.EPERM: StorageDenied,
}
_ADVICE: Final = {
    errno.ENOSPC: "the disk is full: free space there or move the folder to a larger disk",
    errno.EDQUOT: "the disk quota is used up: free space there or have it raised",
    errno.EFBIG: "the file is larger than this process or file system allows: raise the limit (ulimit -f)",
    errno.EROFS: "the file system is mounted read-only: look into the system's log for why, then mount it writable",
    errno.EACCES: "permission denied: give the service's user the folder and all in it",
    errno.EPERM: "permission denied: give the service's user the folder and all in it",
    errno.EMFILE: "too many open files: raise LimitNOFILE (ulimit -n)",
    errno.ENFILE: "too many open files on this host: raise fs.file-max",
    errno.EIO: "the disk reports an error: check it before anything else is written to it",
}


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into StorageFailed that says what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        kind = _KINDS.get(error.errno or 0, StorageFailed)
        raise kind(f"{error.filename or path}: {advice}") from error
