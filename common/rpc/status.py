"""The one place that knows how an error becomes a gRPC status, and a status an error again.

The class travels as google.rpc.ErrorInfo(reason, domain "accord", metadata) in the status details, so that the other
side raises the same class. A status without it (the transport's own, another server's) becomes what comes closest.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_status import rpc_status

from common import errors

DOMAIN: Final = "accord"

STATUS_OF: Final[Mapping[type[errors.AccordError], StatusCode]] = {
    errors.AccordError: StatusCode.UNKNOWN,
    # input
    errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    errors.ConfigInvalid: StatusCode.FAILED_PRECONDITION,
    errors.PlanInvalid: StatusCode.INVALID_ARGUMENT,
    errors.CharterInvalid: StatusCode.INVALID_ARGUMENT,
    # resources
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    # order and state
    errors.TransitionNotAllowed: StatusCode.FAILED_PRECONDITION,
    errors.OutOfTurn: StatusCode.FAILED_PRECONDITION,
    errors.VersionConflict: StatusCode.ABORTED,
    errors.LeaseLost: StatusCode.ABORTED,
    # identity and permission
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: StatusCode.PERMISSION_DENIED,
    errors.CertificateRevoked: StatusCode.PERMISSION_DENIED,
    errors.NotInCohort: StatusCode.PERMISSION_DENIED,
    errors.JoinTokenInvalid: StatusCode.FAILED_PRECONDITION,
    # updates and uploads
    errors.UploadMismatch: StatusCode.INVALID_ARGUMENT,
    errors.UploadIncomplete: StatusCode.ABORTED,
    errors.UpdateLost: StatusCode.FAILED_PRECONDITION,
    errors.UpdateNotFinite: StatusCode.INVALID_ARGUMENT,
    errors.ShapeMismatch: StatusCode.INVALID_ARGUMENT,
    errors.NormExceeded: StatusCode.INVALID_ARGUMENT,
    errors.DigestMismatch: StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: StatusCode.RESOURCE_EXHAUSTED,
    # what a participant will not do
    errors.PolicyRefusal: StatusCode.FAILED_PRECONDITION,
    errors.BaseModelMismatch: StatusCode.FAILED_PRECONDITION,
    errors.BaseModelUnavailable: StatusCode.FAILED_PRECONDITION,
    errors.DataInvalid: StatusCode.FAILED_PRECONDITION,
    errors.TrainingFailed: StatusCode.FAILED_PRECONDITION,
    errors.TrainingStopped: StatusCode.ABORTED,
    # secure aggregation
    errors.ProtocolViolation: StatusCode.INVALID_ARGUMENT,
    errors.MalformedMessage: StatusCode.INVALID_ARGUMENT,
    errors.SignatureInvalid: StatusCode.INVALID_ARGUMENT,
    errors.MemberRejected: StatusCode.FAILED_PRECONDITION,
    errors.SecondSurvivorSet: StatusCode.FAILED_PRECONDITION,
    errors.AggregationFailed: StatusCode.FAILED_PRECONDITION,
    errors.AuditFailed: StatusCode.FAILED_PRECONDITION,
    errors.TooFewMembers: StatusCode.FAILED_PRECONDITION,
    errors.MemberAtFault: StatusCode.FAILED_PRECONDITION,
    # the world
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.HostNotFound: StatusCode.UNAVAILABLE,
    errors.ConnectionRefused: StatusCode.UNAVAILABLE,
    errors.ConnectionFiltered: StatusCode.UNAVAILABLE,
    errors.ProxyFailed: StatusCode.UNAVAILABLE,
    errors.HandshakeStalled: StatusCode.UNAVAILABLE,
    errors.TlsIntercepted: StatusCode.UNAVAILABLE,
    errors.WrongHost: StatusCode.UNAVAILABLE,
    errors.ClockWrong: StatusCode.FAILED_PRECONDITION,
    errors.StorageFailed: StatusCode.UNAVAILABLE,
    errors.StorageUnreachable: StatusCode.UNAVAILABLE,
    errors.StorageDenied: StatusCode.UNAVAILABLE,
    errors.StorageMissing: StatusCode.UNAVAILABLE,
    errors.StorageFull: StatusCode.UNAVAILABLE,
    errors.ResourceExhausted: StatusCode.RESOURCE_EXHAUSTED,
}

# A caller can do nothing with paths, hosts and SQL of the other side's storage; its operator reads them in the log.
_WITHHELD: Final[Mapping[type[errors.AccordError], str]] = {
    errors.StorageFailed: "the coordinator's storage refused; its operator finds the reason in its log. Try again later"
}

# The text travels twice (grpc-message, percent-encoded, and the details), and a peer may refuse trailers over 8 KiB.
MOST_MESSAGE_BYTES: Final = 3000
MOST_METADATA_BYTES: Final = 1000

CLASS_OF_REASON: Final[Mapping[str, type[errors.AccordError]]] = {
    member.reason: member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, errors.AccordError)
}

# What a status without our details means. The rest is an AccordError that shows code and text.
_CLASS_OF_CODE: Final[Mapping[StatusCode, type[errors.AccordError]]] = {
    StatusCode.UNAVAILABLE: errors.Unavailable,
    StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
    StatusCode.CANCELLED: errors.Unavailable,
    StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    StatusCode.NOT_FOUND: errors.NotFound,
    StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
}


def status_code(error: errors.AccordError) -> StatusCode:
    """The code of an error's class, or of the nearest class above it that the table holds."""
    return next(STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF)


def to_status(error: errors.AccordError) -> grpc.Status:
    """What a server ends a call with: code, message and the details from which `to_error` makes the error again."""
    withheld = next((text for kind, text in _WITHHELD.items() if isinstance(error, kind)), None)
    message = _fitting(withheld or error.message or error.reason)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_small(error.metadata))
    detail = AnyMessage()
    detail.Pack(info)
    number, _ = status_code(error).value
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=number, message=message, details=[detail]))
    return status


def to_error(failure: grpc.RpcError) -> errors.AccordError:
    """The error that a failed call means: the class that the server raised, or what the transport's status says."""
    if not isinstance(failure, grpc.Call | grpc.aio.AioRpcError):
        return errors.AccordError(f"the call failed: {failure}")
    code, text = failure.code(), failure.details() or ""
    info = _error_info(failure)
    if info is not None:
        kind = CLASS_OF_REASON.get(info.reason)
        if kind is None:  # a newer server's error: its text still helps a person
            return errors.AccordError(f"{text} ({info.reason})", metadata=dict(info.metadata))
        return kind(text, metadata=dict(info.metadata))
    if code is StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return errors.TooLarge(f"a message is over the transport's limit: {text}")
    kind = _CLASS_OF_CODE.get(code)
    if kind is None:
        return errors.AccordError(f"{code.name}: {text}")
    return kind(_explained(code, text))


@contextmanager
def raised_as_errors() -> Iterator[None]:
    """Every failed call inside the `with` block raises the error that it means."""
    try:
        yield
    except grpc.RpcError as failure:
        raise to_error(failure) from failure
    except ValueError as failure:
        # How the library says that another thread has closed the channel, as at the end of a service.
        if "closed channel" not in str(failure).lower():
            raise
        raise errors.Unavailable("the connection was closed here") from failure


def _error_info(failure: grpc.Call | grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    try:
        status = rpc_status.from_call(failure)
    except (ValueError, DecodeError):  # details that contradict the status are nobody's
        return None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None


def _explained(code: StatusCode, text: str) -> str:
    """The transport's text with what it usually means; TLS failures hide behind UNAVAILABLE."""
    if code is StatusCode.DEADLINE_EXCEEDED:
        return f"no answer in time: {text}"
    if "Hostname Verification Check failed" in text:
        return f"the server's certificate does not name the host that was dialled: {text}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the server's certificate does not verify (another CA, or expired): {text}"
    if "certificate" in text.lower() and "alert" in text.lower():
        return f"the server refused this side's certificate: {text}"
    return text or code.name


def _fitting(message: str) -> str:
    """The message, cut where it would not fit into the trailers of a peer with the usual limits."""
    if len(quote(message, safe=" ")) <= MOST_MESSAGE_BYTES:
        return message
    used = 0
    for position, character in enumerate(message):
        used += len(quote(character, safe=" ", errors="replace"))
        if used > MOST_MESSAGE_BYTES - 10:
            return message[:position] + " [...]"
    return message


def _small(metadata: Mapping[str, str]) -> dict[str, str]:
    """As many entries as fit, in their order."""
    kept: dict[str, str] = {}
    used = 0
    for key, value in metadata.items():
        used += len(key.encode()) + len(value.encode())
        if used > MOST_METADATA_BYTES:
            break
        kept[key] = value
    return kept
