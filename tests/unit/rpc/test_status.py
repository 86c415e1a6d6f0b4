"""Errors as gRPC status and back: complete, unambiguous, and small enough for every peer."""

from __future__ import annotations

import inspect
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from common import errors
from common.rpc.status import (
    CLASS_OF_REASON,
    DOMAIN,
    MOST_MESSAGE_BYTES,
    STATUS_OF,
    raised_as_errors,
    to_error,
    to_status,
)

ALL_ERRORS = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, errors.AccordError) and member.__module__ == errors.__name__
]
DETAILS_KEY = "grpc-status-details-bin"


class Failed(grpc.RpcError, grpc.Call):
    """A failed call, as a client's library hands it out."""

    def __init__(self, code: StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._code, self._details, self._trailing = code, details, trailing

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailing

    def initial_metadata(self):
        return ()

    def is_active(self):
        return False

    def time_remaining(self):
        return None

    def cancel(self):
        return False

    def add_callback(self, callback):
        return False


def received(status: grpc.Status) -> Failed:
    return Failed(status.code, status.details, status.trailing_metadata)


def with_info(code: StatusCode, message: str, *, reason: str, domain: str = DOMAIN) -> Failed:
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    return Failed(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def test_every_error_has_a_status():
    assert set(STATUS_OF) == set(ALL_ERRORS)


def test_no_two_errors_share_a_reason():
    reasons = [error.reason for error in ALL_ERRORS]

    assert len(set(reasons)) == len(reasons)
    assert set(CLASS_OF_REASON) == set(reasons)


def test_no_error_means_success():
    assert StatusCode.OK not in STATUS_OF.values()


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_comes_back_as_its_own_class(kind):
    error = to_error(received(to_status(kind("what to do", metadata={"chunk": "7"}))))

    assert type(error) is kind
    assert error.metadata == {"chunk": "7"}


def test_members_at_fault_are_still_named_on_the_other_side():
    error = to_error(received(to_status(errors.MemberAtFault("x", ("bank", "clinic")))))

    assert isinstance(error, errors.MemberAtFault)
    assert error.members == ("bank", "clinic")


def test_a_subclass_that_the_table_does_not_hold_takes_its_parents_status():
    class Stranger(errors.NotFound):
        reason = "STRANGER"

    assert to_status(Stranger("x")).code is StatusCode.NOT_FOUND


@given(st.text(max_size=20_000))
def test_a_message_always_fits_into_trailers_and_keeps_its_beginning(text):
    status = to_status(errors.InvalidArgument(text))

    assert len(quote(status.details, safe=" ", errors="replace")) <= MOST_MESSAGE_BYTES
    assert sum(len(value) for _, value in status.trailing_metadata) < 5000
    kept = status.details.removesuffix(" [...]")
    assert text.startswith(kept) or not text
    assert type(to_error(received(status))) is errors.InvalidArgument


def test_a_short_message_is_not_cut():
    text = "é" * 100

    assert to_status(errors.InvalidArgument(text)).details == text


def test_metadata_without_end_is_cut():
    error = errors.InvalidArgument("x", metadata={str(number): "v" * 100 for number in range(1000)})

    assert sum(len(value) for _, value in to_status(error).trailing_metadata) < 5000


@pytest.mark.parametrize("kind", [errors.StorageFailed, errors.StorageDenied])
def test_the_text_of_a_storage_failure_is_withheld(kind):
    assert "secret" not in to_status(kind("postgresql://accord:secret@db")).details


def test_a_reason_from_a_newer_server_keeps_its_text():
    error = to_error(with_info(StatusCode.FAILED_PRECONDITION, "use the other door", reason="NEW_IN_9"))

    assert type(error) is errors.AccordError
    assert error.message == "use the other door (NEW_IN_9)"


def test_another_domains_reason_is_not_ours():
    error = to_error(with_info(StatusCode.NOT_FOUND, "x", reason="ALREADY_EXISTS", domain="example.org"))

    assert type(error) is errors.NotFound


def test_details_that_contradict_the_status_are_not_believed():
    lying = with_info(StatusCode.NOT_FOUND, "x", reason="ALREADY_EXISTS")
    lying._code = StatusCode.UNAVAILABLE

    assert type(to_error(lying)) is errors.Unavailable


def test_broken_details_are_passed_over():
    broken = Failed(StatusCode.UNAVAILABLE, "x", ((DETAILS_KEY, b"\xff\xff\xff"),))

    assert type(to_error(broken)) is errors.Unavailable


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAVAILABLE, errors.Unavailable),
        (StatusCode.DEADLINE_EXCEEDED, errors.Unavailable),
        (StatusCode.CANCELLED, errors.Unavailable),
        (StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (StatusCode.INTERNAL, errors.AccordError),
        (StatusCode.UNIMPLEMENTED, errors.AccordError),
    ],
)
def test_the_transports_own_status_becomes_what_comes_closest(code, kind):
    error = to_error(Failed(code, "text"))

    assert type(error) is kind
    assert "text" in error.message


def test_a_message_over_the_transports_limit_is_too_large():
    failed = Failed(StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")

    assert type(to_error(failed)) is errors.TooLarge


@pytest.mark.parametrize(
    ("text", "explanation"),
    [
        ("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED: unable to get local issuer", "does not verify"),
        ("Hostname Verification Check failed.", "does not name the host"),
        ("tlsv1 alert certificate expired", "refused this side's certificate"),
    ],
)
def test_tls_failures_say_what_they_mean(text, explanation):
    assert explanation in to_error(Failed(StatusCode.UNAVAILABLE, text)).message


def test_an_error_of_the_library_without_a_status_is_still_an_error():
    assert type(to_error(grpc.RpcError("closed"))) is errors.AccordError


def test_a_channel_that_was_closed_by_another_thread_is_an_unavailable_coordinator() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/accord.v1.RoundService/GetCharter")
    with pytest.raises(errors.Unavailable, match="closed here"), raised_as_errors():
        call(b"")


def test_another_value_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="seven"), raised_as_errors():
        raise ValueError("seven")
