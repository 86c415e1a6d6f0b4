"""What an S3 service's refusals mean, and what to do about each.

Knows codes and exceptions of the client library; not which calls are made, nor what blobs are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from common.errors import StorageDenied, StorageFailed, StorageFull, StorageMissing, StorageUnreachable


class ObjectMissing(StorageFailed):
    """There is no object of this key (or, where the service gave no code, no bucket)."""


class ConditionFailed(StorageFailed):
    """If-Match or If-None-Match did not hold."""


class NothingInRange(StorageFailed):
    """The object ends before the range begins."""


class UploadGone(StorageFailed):
    """A multipart upload is not open any more: it was completed or aborted."""


_KINDS: Final[Mapping[str, type[StorageFailed]]] = {
    "NoSuchKey": ObjectMissing,
    "404": ObjectMissing,  # of a HEAD, whose answer has no body and so no code
    "NotFound": ObjectMissing,
    "PreconditionFailed": ConditionFailed,
    "412": ConditionFailed,
    "ConditionalRequestConflict": ConditionFailed,
    "InvalidRange": NothingInRange,
    "416": NothingInRange,
    "NoSuchUpload": UploadGone,
    "NoSuchBucket": StorageMissing,
    "QuotaExceeded": StorageFull,
    "InsufficientStorage": StorageFull,
    "InsufficientCapacity": StorageFull,
    "XMinioStorageFull": StorageFull,
    "XMinioAdminBucketQuotaExceeded": StorageFull,
    "InvalidAccessKeyId": StorageDenied,
    "SignatureDoesNotMatch": StorageDenied,
    "ExpiredToken": StorageDenied,
    "InvalidToken": StorageDenied,
    "AccessDenied": StorageDenied,
    "403": StorageDenied,
    "Forbidden": StorageDenied,
    "AccountProblem": StorageDenied,
    "RequestTimeTooSkewed": StorageDenied,
    "RequestExpired": StorageDenied,
    "RequestTimeout": StorageUnreachable,
    "SlowDown": StorageUnreachable,
    "ServiceUnavailable": StorageUnreachable,
    "503": StorageUnreachable,
}
# Another key may be in the credentials file by now.
CREDENTIAL_CODES: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})

_MINDED: Final = "the operator of the service minds that"
_REGION: Final = "blobs.region is not the bucket's: correct it"
_ADVICE: Final[Mapping[str, str]] = {
    "NoSuchBucket": "there is no such bucket: create it, or correct blobs.url",
    "InvalidBucketName": "the service does not take this bucket's name: correct blobs.url",
    "QuotaExceeded": "the bucket's quota is used up: have it raised, or lower blobs.kept_rounds",
    "XMinioAdminBucketQuotaExceeded": "the bucket's quota is used up: have it raised, or lower blobs.kept_rounds",
    "InsufficientStorage": f"the service's disks are full: {_MINDED}",
    "InsufficientCapacity": f"the service's disks are full: {_MINDED}",
    "XMinioStorageFull": f"the service's disks are full: {_MINDED}",
    "InvalidAccessKeyId": "the service does not know this access key: put the right one into the credentials file",
    "SignatureDoesNotMatch": "the secret does not belong to the access key: put the right pair into the credentials",
    "ExpiredToken": "the session token has expired: whoever writes the credentials must renew it",
    "InvalidToken": "the session token is not valid: whoever writes the credentials must renew it",
    "AccessDenied": "these credentials may not do that: docs/operations-blobs.md lists the rights that are needed",
    "403": "these credentials may not do that: docs/operations-blobs.md lists the rights that are needed",
    "Forbidden": "these credentials may not do that: docs/operations-blobs.md lists the rights that are needed",
    "AccountProblem": f"the account is suspended: {_MINDED}",
    "RequestTimeTooSkewed": "this host's clock and the service's are too far apart: synchronise this host's (NTP)",
    "RequestExpired": "this host's clock and the service's are too far apart: synchronise this host's (NTP)",
    "BadDigest": "the bytes changed on their way and were not stored: look for a middle box or faulty memory",
    "EntityTooLarge": "the service does not take objects of this size: have its limit raised",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidObjectState": "the object was moved to an archive: restore it, and take the rule off this bucket",
    "ObjectLocked": "an object lock holds it: take the lock's rule off this bucket",
    "NotImplemented": "the service does not know this call: docs/operations-blobs.md lists those that are needed",
    "InternalError": f"the service failed inside; full or missing volumes show so in some: {_MINDED}",
    "SlowDown": "the service asks for fewer calls; they are tried again",
    "ServiceUnavailable": "the service is overloaded or starting; it is tried again",
    "503": "the service is overloaded or starting; it is tried again",
}


def code_of(error: ClientError) -> str:
    """The service's own code, or the HTTP status where its answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def refusal(error: ClientError, place: str) -> StorageFailed:
    """What the service answered, as an error of ours."""
    code = code_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    kind = StorageFull if status == 507 else _KINDS.get(code, StorageFailed)
    text = str(error.response.get("Error", {}).get("Message", ""))
    advice = _ADVICE.get(code) or f"it says {text!r}"
    return kind(f"{place} answered {code} to {error.operation_name}: {advice}")


def failure(error: BotoCoreError | HTTPClientError, place: str, endpoint: str) -> StorageFailed:
    """What kept the client from an answer, as an error of ours."""
    if isinstance(error, SSLError):
        return StorageUnreachable(
            f"{place}: TLS with {endpoint} failed ({_cause(error)}): if its certificate is from a CA of your own, "
            "name that CA's file as blobs.ca_file"
        )
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
        return StorageDenied(
            f"{place}: no usable credentials: name blobs.credentials_file, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the host or pod a role"
        )
    if isinstance(error, (ConnectionError, HTTPClientError)):
        return StorageUnreachable(
            f"{place}: cannot reach {endpoint} ({_cause(error)}): check blobs.endpoint, name resolution, proxy and "
            "firewall"
        )
    return StorageFailed(f"{place}: {error}")


def _cause(error: BotoCoreError) -> str:
    text = str(error.kwargs.get("error") or type(error).__name__)
    return text.rsplit(": ", 1)[-1][:200]
