"""Blobs as objects of an S3 bucket, for a coordinator of several replicas.

An object is whole or absent, and S3 answers when it is durable; so is a blob. The service checks the digest of what it
is sent before it answers. A masked upload is many blobs, one for each durable segment, and the database says how many:
any replica goes on with it at its last durable byte. Below the prefix `.federation` says whose blobs these are; names
that begin with a dot are no blobs. Other services than AWS's list keys in other orders and have folders behind the
scenes: nothing here relies on either.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

from common.errors import ConfigInvalid, InvalidArgument, NotFound, StorageFailed, StorageMissing, StorageUnreachable
from common.log import get_logger
from coordinator.store.blobs import MAX_KEY_BYTES, check_key, check_range
from coordinator.store.s3_connection import Found, ObjectPage, S3Connection
from coordinator.store.s3_errors import ConditionFailed, NothingInRange, ObjectMissing
from coordinator.store.s3_parts import (
    ONE_CALL_BYTES,
    OpenFile,
    Part,
    Pieces,
    Source,
    abort_abandoned,
    content_md5,
    now_utc,
    put_in_parts,
)
from coordinator.store.s3_settings import S3Place, S3Settings

OWNER_NAME: Final = ".federation"
_OWNER_FORM: Final = "accord blobs 1\n"
_READ_BYTES: Final = 4 << 20
_DELETED_AT_ONCE: Final = 1000
# Of a reader whose line breaks without a byte in between, or whose blob is replaced again and again.
_ATTEMPTS: Final = 8

log = get_logger(__name__)


class _Replaced(Exception):
    """The blob is another one than when reading it began."""


class S3BlobStore:
    """A `BlobStore` in a bucket. Any number of processes may share it; keep a prefix to one federation."""

    def __init__(self, url: str, settings: S3Settings, *, owner: str | None = None) -> None:
        """owner: the federation; the first one to open an empty prefix has it.

        Raises ConfigInvalid for what is wrong in the configuration or belongs to another federation, and StorageFailed
        (by its subclass: unreachable, denied, no bucket) if the bucket cannot be used.
        """
        self._connection = S3Connection(S3Place.parse(url), settings)
        self._bucket = self._connection.bucket
        if owner is not None:
            self._claim(owner)
            abort_abandoned(self._connection, now=now_utc())

    def put(self, key: str, *content: bytes | memoryview) -> None:
        self._put_object(self._key(key), Pieces(content))

    def put_file(self, key: str, path: Path) -> None:
        whole = self._key(key)
        with _file_errors(path), path.open("rb") as file:
            source = OpenFile(file.fileno())
            if source.size <= ONE_CALL_BYTES:
                self._put_object(whole, source)
            else:
                put_in_parts(self._connection, whole, source)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        whole = self._key(key)
        check_range(key, offset, length)
        if length == 0:
            self._head(key, whole)
            return b""
        for _ in range(_ATTEMPTS):
            try:
                found = list(self._stream(key, whole, offset, length))
                return found[0] if len(found) == 1 else b"".join(found)
            except _Replaced:
                continue
        raise StorageFailed(f"blob {key!r} was replaced again and again while it was read")

    def fetch(self, key: str, destination: Path) -> None:
        whole = self._key(key)
        # Under another name first: a destination that exists is replaced in one step.
        arriving = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
        with _file_errors(destination):
            try:
                for _ in range(_ATTEMPTS):
                    try:
                        with arriving.open("wb") as file:
                            for piece in self._stream(key, whole, 0, None):
                                file.write(piece)
                        os.replace(arriving, destination)
                        return
                    except _Replaced:
                        continue
                raise StorageFailed(f"blob {key!r} was replaced again and again while it was read")
            finally:
                arriving.unlink(missing_ok=True)

    def size(self, key: str) -> int:
        return self._head(key, self._key(key))["ContentLength"]

    def exists(self, key: str) -> bool:
        try:
            self._head(key, self._key(key))
        except NotFound:
            return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Sorted here, in memory: services sort in orders of their own."""
        root = self._connection.place.key("")
        below = self._key(prefix) + "/" if prefix else root
        found = sorted(key[len(root) :] for page in self._pages(below) for key in page)
        if prefix and not found and self.exists(prefix):
            found = [prefix]
        yield from (key for key in found if not key.startswith(".") and not key.endswith("/"))

    def delete(self, prefix: str) -> None:
        whole = self._key(prefix)
        itself = [whole]
        for page in self._pages(f"{whole}/"):
            self._delete([*itself, *page])
            itself = []

    def probe(self) -> None:
        """Store, read, list and delete a small object. Raises StorageFailed that says which of it does not work."""
        place, content = self._connection.place, secrets.token_bytes(64)
        key = place.key(f".probe-{secrets.token_hex(8)}")
        self._put_object(key, Pieces([content]))
        try:
            if b"".join(self._stream(key, key, 0, None)) != content:
                raise StorageFailed(f"{place}: what was stored comes back as something else")
            if key not in [found for page in self._pages(key) for found in page]:
                raise StorageFailed(f"{place}: what was stored is not listed")
            if self._put_if_absent(key, Pieces([content])):
                raise StorageFailed(
                    f"{place}: the service overwrites although it is asked not to (If-None-Match), so two federations "
                    "could take one prefix; use a service, or a version, that has conditional writes"
                )
        finally:
            self._delete([key])

    # --- whose blobs these are ------------------------------------------------------------------------------------

    def _claim(self, owner: str) -> None:
        """Take an empty prefix, or see that it is ours: another federation's rounds would overwrite our uploads."""
        key, text = self._connection.place.key(OWNER_NAME), _OWNER_FORM + owner + "\n"
        found = self._owner(key)
        if found is None:
            if self._put_if_absent(key, Pieces([text.encode()])):
                return
            found = self._owner(key)
        if found is None:  # S3 may answer so while another one's write is under way.
            raise StorageUnreachable(f"{self._connection.place}: another coordinator is just taking it; try again")
        if found != text:
            first = found.removeprefix(_OWNER_FORM).strip()[:80]
            raise ConfigInvalid(
                f"blobs.url: {self._connection.place} has the blobs of federation {first!r}, this one is {owner!r}: "
                "give each a prefix of its own"
            )

    def _owner(self, key: str) -> str | None:
        try:
            return b"".join(self._stream(key, key, 0, None)).decode(errors="replace")
        except NotFound:
            return None

    # --- objects --------------------------------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        check_key(key)
        whole = self._connection.place.key(key)
        if len(whole) > MAX_KEY_BYTES:
            raise InvalidArgument(f"{key[:80]!r} is not a blob key: with the prefix it has over {MAX_KEY_BYTES} bytes")
        return whole

    def _put_object(self, whole: str, source: Source, **condition: str) -> None:
        part = Part.whole(source)
        digest = content_md5(part.md5())
        self._connection.call(
            lambda s3: s3.put_object(Bucket=self._bucket, Key=whole, Body=part.body(), ContentMD5=digest, **condition)
        )

    def _put_if_absent(self, whole: str, source: Source) -> bool:
        try:
            self._put_object(whole, source, IfNoneMatch="*")
        except ConditionFailed:
            return False
        return True

    def _head(self, key: str, whole: str) -> Found:
        try:
            return self._connection.call(lambda s3: s3.head_object(Bucket=self._bucket, Key=whole))
        except ObjectMissing:
            self._require_bucket()
            raise NotFound(f"there is no blob {key!r}") from None

    def _require_bucket(self) -> None:
        """A HEAD is answered alike where the object and where the bucket is missing."""
        try:
            self._connection.call(lambda s3: s3.head_bucket(Bucket=self._bucket))
        except ObjectMissing:
            raise StorageMissing(
                f"{self._connection.place}: there is no such bucket: create it, or correct blobs.url"
            ) from None

    def _stream(self, key: str, whole: str, offset: int, length: int | None) -> Iterator[bytes]:
        """The bytes, in pieces of at most _READ_BYTES; a line that breaks is taken up where it broke.

        Raises NotFound, StorageFailed, and _Replaced if what follows would be another blob's.
        """
        end = None if length is None else offset + length
        etag, broken = "", 0
        while end is None or offset < end:
            try:
                found = self._get(key, whole, offset, end, etag)
            except NothingInRange:
                return
            body, etag = found["Body"], found["ETag"]
            try:
                while piece := body.read(_READ_BYTES):
                    offset += len(piece)
                    broken = 0
                    yield piece
                return
            except (HTTPClientError, IncompleteReadError, ResponseStreamingError, OSError) as error:
                broken += 1
                if broken == _ATTEMPTS:
                    raise StorageUnreachable(
                        f"{self._connection.place}: reading {key!r} breaks off: {error}"
                    ) from error
            finally:
                body.close()

    def _get(self, key: str, whole: str, offset: int, end: int | None, etag: str) -> Found:
        parameters: dict[str, object] = {"Bucket": self._bucket, "Key": whole}
        if offset or end is not None:
            parameters["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        if etag:
            parameters["IfMatch"] = etag
        try:
            return self._connection.call(lambda s3: s3.get_object(**parameters))
        except ObjectMissing:
            raise NotFound(f"there is no blob {key!r}") from None
        except ConditionFailed:
            raise _Replaced from None

    def _pages(self, start: str) -> Iterator[list[str]]:
        """Keys of objects that begin so, page by page."""
        more: dict[str, str] = {}
        while True:
            page = self._page(start, more)
            yield [found["Key"] for found in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, start: str, more: dict[str, str]) -> ObjectPage:
        return self._connection.call(lambda s3: s3.list_objects_v2(Bucket=self._bucket, Prefix=start, **more))

    def _delete(self, keys: Sequence[str]) -> None:
        """At most a page of keys, as S3 takes them in one call. Those that are not there do no harm."""
        wanted = {"Objects": [{"Key": key} for key in keys[:_DELETED_AT_ONCE]], "Quiet": True}
        answer = self._connection.call(lambda s3: s3.delete_objects(Bucket=self._bucket, Delete=wanted))
        for error in answer.get("Errors", ()):
            raise StorageFailed(
                f"{self._connection.place}: {error.get('Key')} cannot be deleted: {error.get('Code')} "
                f"{error.get('Message')}"
            )
        if len(keys) > _DELETED_AT_ONCE:
            self._delete(keys[_DELETED_AT_ONCE:])


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """What this host's disk refuses, with the name of the file."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{error.filename or path}: {error.strerror or error}") from error
