"""Bytes on their way into a bucket: bodies that are read piece by piece, and files too large for one call.

A large file goes up in parts. Parts that have arrived stay at the service, and whoever stores the same file under the
same key again, this process or another, after a broken line or a kill, sends only what is missing. A part counts as
arrived if the service has its length and MD5, so that a file with other bytes takes nothing over.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from common.errors import StorageFailed, StorageUnreachable
from common.log import get_logger
from coordinator.store.s3_connection import ListedUpload, PartPage, S3Connection, UploadPage
from coordinator.store.s3_errors import UploadGone

MEBIBYTE: Final = 1 << 20
# Up to here a file is one call. S3's own least part is 5 MiB, and its most are 10,000 parts.
ONE_CALL_BYTES: Final = 32 * MEBIBYTE
PART_BYTES: Final = 16 * MEBIBYTE
MOST_PARTS: Final = 10_000
# Nobody goes on with an upload after so long: its round is over.
ABANDONED_AFTER: Final = timedelta(days=1)
_READ_BYTES: Final = MEBIBYTE
_WHOLE_BYTES: Final = MEBIBYTE
# Once more if another process has completed or aborted the upload that was being gone on with.
_ATTEMPTS: Final = 2

log = get_logger(__name__)


class Source(Protocol):
    """Bytes that can be read from any offset, again and again."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes, at least one if there are any."""


class Pieces:
    """A source of pieces in memory; copies no more than what is read at once."""

    def __init__(self, pieces: Sequence[bytes | memoryview]) -> None:
        views = [memoryview(piece).cast("B") for piece in pieces]
        self._pieces = [view for view in views if view.nbytes]
        self.size = sum(view.nbytes for view in self._pieces)

    def read_at(self, offset: int, size: int) -> bytes:
        for piece in self._pieces:
            if offset < piece.nbytes:
                return bytes(piece[offset : offset + size])
            offset -= piece.nbytes
        return b""


class OpenFile:
    """A source of an open file's bytes, which leaves its position alone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a source, in bytes."""

    source: Source
    start: int
    size: int

    @classmethod
    def whole(cls, source: Source) -> Part:
        return cls(source, 0, source.size)

    def body(self) -> Body | bytes:
        """The bytes as a file, from their beginning. A few as such: with a file the client asks before it sends."""
        whole = Body(self)
        return whole if self.size > _WHOLE_BYTES else whole.read()

    def md5(self) -> bytes:
        """Not for security: it is the one digest that every service checks before it answers."""
        digest = hashlib.md5(usedforsecurity=False)
        body = Body(self)
        while piece := body.read(_READ_BYTES):
            digest.update(piece)
        return digest.digest()


class Body:
    """A part as a file-like object; the client reads it more than once when it signs and when it tries again."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._at = 0

    def __len__(self) -> int:
        return self._part.size

    def read(self, amount: int | None = None) -> bytes:
        left = self._part.size - self._at
        wanted = left if amount is None or amount < 0 else min(amount, left)
        found = []
        while wanted and (piece := self._part.source.read_at(self._part.start + self._at, wanted)):
            found.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return found[0] if len(found) == 1 else b"".join(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def content_md5(digest: bytes) -> str:
    """As the header Content-MD5 has it."""
    return base64.b64encode(digest).decode()


def part_bytes(size: int) -> int:
    """How large the parts of a file of `size` bytes are: whole MiB, and the same for whoever goes on with it."""
    least = -(-size // MOST_PARTS)
    return max(PART_BYTES, -(-least // MEBIBYTE) * MEBIBYTE)


def put_in_parts(connection: S3Connection, key: str, source: Source) -> None:
    """Store a large file, going on with what an earlier try has left. Raises StorageFailed; what has arrived stays."""
    for attempt in range(_ATTEMPTS):
        try:
            _complete(connection, _open_upload(connection, key), source)
            return
        except UploadGone:
            if attempt == _ATTEMPTS - 1:
                raise


def abort_abandoned(connection: S3Connection, *, now: datetime) -> None:
    """Throw away parts of uploads that were begun more than a day ago. Only said, if the service refuses."""
    try:
        for upload in _uploads(connection, connection.place.key("")):
            if now - upload["Initiated"] > ABANDONED_AFTER:
                _abort(connection, upload)
    except StorageFailed as error:
        log.warning("abandoned_uploads_left", place=str(connection.place), why=error.message)


@dataclass(frozen=True, slots=True)
class _Upload:
    """An open multipart upload. arrived: length and ETag of parts, by number."""

    key: str
    identifier: str
    arrived: dict[int, tuple[int, str]]


def _open_upload(connection: S3Connection, key: str) -> _Upload:
    """The newest upload of this key that is open, or a new one."""
    try:
        begun = [one for one in _uploads(connection, key) if one["Key"] == key]
        if begun:
            newest = max(begun, key=lambda one: one["Initiated"])
            return _Upload(key, newest["UploadId"], _arrived(connection, newest))
    except (StorageUnreachable, UploadGone):
        raise
    except StorageFailed as error:  # A right or a call that is missing: then without what was sent before.
        log.warning("upload_begun_anew", key=key, why=error.message)
    made = connection.call(lambda s3: s3.create_multipart_upload(Bucket=connection.bucket, Key=key))
    return _Upload(key, made["UploadId"], {})


def _complete(connection: S3Connection, upload: _Upload, source: Source) -> None:
    size = part_bytes(source.size)
    stored: list[dict[str, object]] = []
    gone_on_with = 0
    for number, start in enumerate(range(0, source.size, size), start=1):
        part = Part(source, start, min(size, source.size - start))
        digest = part.md5()
        length, etag = upload.arrived.get(number, (0, ""))
        if length == part.size and etag.strip('"') == digest.hex():
            gone_on_with += length
        else:
            etag = _send(connection, upload, number, part, digest)
        stored.append({"PartNumber": number, "ETag": etag})
    if gone_on_with:
        log.info("upload_gone_on_with", key=upload.key, durable_bytes=gone_on_with, total_bytes=source.size)
    connection.call(
        lambda s3: s3.complete_multipart_upload(
            Bucket=connection.bucket, Key=upload.key, UploadId=upload.identifier, MultipartUpload={"Parts": stored}
        )
    )


def _send(connection: S3Connection, upload: _Upload, number: int, part: Part, digest: bytes) -> str:
    """The ETag under which the service has the part."""
    stored = connection.call(
        lambda s3: s3.upload_part(
            Bucket=connection.bucket,
            Key=upload.key,
            UploadId=upload.identifier,
            PartNumber=number,
            Body=part.body(),
            ContentMD5=content_md5(digest),
        )
    )
    return stored["ETag"]


def _uploads(connection: S3Connection, prefix: str) -> list[ListedUpload]:
    """Open multipart uploads of keys that begin so."""
    found: list[ListedUpload] = []
    more: dict[str, str] = {}
    while True:
        page = _upload_page(connection, prefix, more)
        found += page.get("Uploads", ())
        if not page.get("IsTruncated"):
            return found
        more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _upload_page(connection: S3Connection, prefix: str, more: dict[str, str]) -> UploadPage:
    return connection.call(lambda s3: s3.list_multipart_uploads(Bucket=connection.bucket, Prefix=prefix, **more))


def _arrived(connection: S3Connection, upload: ListedUpload) -> dict[int, tuple[int, str]]:
    found: dict[int, tuple[int, str]] = {}
    page: PartPage = {"IsTruncated": True, "NextPartNumberMarker": 0}
    while page.get("IsTruncated"):
        page = _part_page(connection, upload, page["NextPartNumberMarker"])
        found.update({part["PartNumber"]: (part["Size"], part["ETag"]) for part in page.get("Parts", ())})
    return found


def _part_page(connection: S3Connection, upload: ListedUpload, after: int) -> PartPage:
    return connection.call(
        lambda s3: s3.list_parts(
            Bucket=connection.bucket, Key=upload["Key"], UploadId=upload["UploadId"], PartNumberMarker=after
        )
    )


def _abort(connection: S3Connection, upload: ListedUpload) -> None:
    try:
        connection.call(
            lambda s3: s3.abort_multipart_upload(
                Bucket=connection.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        )
    except UploadGone:
        return
    log.info("abandoned_upload_removed", key=upload["Key"], begun=upload["Initiated"].isoformat())


def now_utc() -> datetime:
    """S3 refuses a clock that is more than minutes off, so this host's is good enough for days."""
    return datetime.now(UTC)
