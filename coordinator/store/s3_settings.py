"""Which bucket, and how its service is reached: what the configuration says. Needs no S3 library.

Holds no secret: credentials are in a file or in the environment, and are read by the connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from common.errors import ConfigInvalid
from coordinator.store.blobs import is_key

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MOST_PREFIX_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How a bucket's service is reached. What is empty is left to the environment, as of any S3 client (AWS_...).

    credentials_file: an AWS credentials file; its profile "default" is used. Read again when the service refuses what
    was in it. ca_file: PEM bundle of the CAs that may certify the endpoint, instead of the system's.
    addressing: whether the bucket is a part of the path or of the host's name; "path" where an endpoint is named.
    """

    endpoint: str = ""
    region: str = ""
    credentials_file: Path | None = None
    ca_file: Path | None = None
    addressing: Literal["", "path", "virtual"] = ""


@dataclass(frozen=True, slots=True)
class S3Place:
    """What "s3://BUCKET/PREFIX" names. prefix: "" or key-like, without a slash at its end."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> S3Place:
        """Raises ConfigInvalid, which does not repeat what may be a secret."""
        parts = urlsplit(url)
        if "@" in parts.netloc or ":" in parts.netloc:
            raise ConfigInvalid(
                "an s3:// URL has a bucket and a prefix alone: keys belong into blobs.credentials_file, "
                "the service's address into blobs.endpoint"
            )
        if not _BUCKET.fullmatch(parts.netloc):
            raise ConfigInvalid("s3:// is followed by a bucket's name, such as s3://my-bucket/accord")
        prefix = parts.path.strip("/")
        is_odd = prefix and (not is_key(prefix) or len(prefix) > _MOST_PREFIX_BYTES)
        if parts.query or parts.fragment or is_odd:
            raise ConfigInvalid(
                f"the prefix of s3://{parts.netloc}/PREFIX has at most {_MOST_PREFIX_BYTES} characters of A-Z a-z 0-9 "
                "_ . = - and '/'"
            )
        return cls(parts.netloc, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, key: str) -> str:
        """The object's key for a blob's key."""
        return f"{self.prefix}/{key}" if self.prefix else key
