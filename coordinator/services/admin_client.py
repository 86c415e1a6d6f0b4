"""A client of AdminService for command lines and scripts: plain values in, plain values out, typed errors.

Messages leave here as dictionaries with the API's field names: times as RFC 3339 text or None, states as short words
("running"), plans as objects. Knows nothing of terminals.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from accord.v1 import admin_pb2 as pb
from accord.v1 import admin_pb2_grpc, resources_pb2
from common.errors import InvalidArgument, Unavailable
from common.rpc.channels import channel_options
from common.rpc.status import raised_as_errors
from common.rpc.tls import channel_credentials

Plain = dict[str, Any]
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Number = TypeVar("Number", covariant=True)

CALL_SECONDS: Final = 30.0
LONG_CALL_SECONDS: Final = 600.0
ATTEMPTS: Final = 3
PAGE: Final = 200
IMPORT_CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """What an operator shows and whom it trusts: PEM bytes."""

    certificate_chain: bytes
    key: bytes = field(repr=False)
    trust_bundle: bytes


@dataclass(frozen=True, slots=True)
class ExportHead:
    """What comes with an adapter's model file."""

    peft_config: str
    manifest: str
    manifest_signature: str


class _Enum(Protocol[Number]):
    """An enum of the API."""

    def Value(self, name: str) -> Number: ...
    def keys(self) -> list[str]: ...


class AdminClient:
    """One channel to one admin listener. Use it in a `with` block."""

    def __init__(self, address: str, identity: OperatorIdentity) -> None:
        self._address = address
        self._channel = grpc.secure_channel(
            address,
            channel_credentials(
                trust_bundle=identity.trust_bundle,
                certificate_chain=identity.certificate_chain,
                key=identity.key,
            ),
            options=channel_options(),
        )
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # --- the federation -------------------------------------------------------------------------------------------

    def federation(self) -> Plain:
        return self._ask(self._stub.GetFederation, pb.GetFederationRequest())

    def create_join_token(self, participant: str, *, ttl_seconds: int) -> Plain:
        """The row, and the text for the partner under "token", which is shown only once."""
        request = pb.CreateJoinTokenRequest(
            request_id=_request_id(), participant_id=participant, ttl_seconds=ttl_seconds
        )
        return self._ask(self._stub.CreateJoinToken, request, attempts=ATTEMPTS)

    def join_tokens(self, *, participant: str = "", open_only: bool = False) -> Iterator[Plain]:
        request = pb.ListJoinTokensRequest(page_size=PAGE, participant_id=participant, open_only=open_only)
        return self._pages(self._stub.ListJoinTokens, request, "join_tokens")

    def revoke_join_token(self, name: str) -> Plain:
        request = pb.RevokeJoinTokenRequest(request_id=_request_id(), name=name)
        return _only(self._ask(self._stub.RevokeJoinToken, request, attempts=ATTEMPTS), "join_token")

    def participants(self, *, states: tuple[str, ...] = ()) -> Iterator[Plain]:
        request = pb.ListParticipantsRequest(
            page_size=PAGE, states=_numbers(resources_pb2.ParticipantState, "PARTICIPANT_STATE", states)
        )
        return self._pages(self._stub.ListParticipants, request, "participants")

    def participant(self, name: str) -> Plain:
        return _only(self._ask(self._stub.GetParticipant, pb.GetParticipantRequest(name=name)), "participant")

    def revoke_participant(self, name: str, *, reason: str) -> Plain:
        request = pb.RevokeParticipantRequest(request_id=_request_id(), name=name, reason=reason)
        return _only(self._ask(self._stub.RevokeParticipant, request, attempts=ATTEMPTS), "participant")

    def draft_charter(
        self,
        *,
        participants: tuple[str, ...],
        least_cohort: int,
        colluders: int | None,
        base_model_digests: tuple[str, ...],
        ca_certificates: Mapping[str, str] = MappingProxyType({}),
    ) -> Plain:
        request = pb.DraftCharterRequest(
            participant_ids=participants,
            least_cohort=least_cohort,
            colluders=colluders,
            base_model_digests=base_model_digests,
            ca_certificates=ca_certificates,
        )
        return self._ask(self._stub.DraftCharter, request)

    def publish_charter(self, charter_json: str) -> Plain:
        request = pb.PublishCharterRequest(request_id=_request_id(), charter_json=charter_json)
        return self._ask(self._stub.PublishCharter, request, attempts=ATTEMPTS)

    def charter(self) -> Plain:
        return self._ask(self._stub.GetPublishedCharter, pb.GetPublishedCharterRequest())

    # --- runs -----------------------------------------------------------------------------------------------------

    def create_run(self, run_id: str, settings: Mapping[str, object]) -> Plain:
        """settings: by the names of PlanSettings' fields. Raises InvalidArgument for a name or a type that is wrong."""
        request = pb.CreateRunRequest(request_id=_request_id(), run_id=run_id, settings=plan_settings(settings))
        answer = self._ask(self._stub.CreateRun, request, attempts=ATTEMPTS, seconds=LONG_CALL_SECONDS)
        return _only(answer, "run")

    def run(self, name: str) -> Plain:
        return _only(self._ask(self._stub.GetRun, pb.GetRunRequest(name=name)), "run")

    def runs(self, *, states: tuple[str, ...] = ()) -> Iterator[Plain]:
        numbers = _numbers(resources_pb2.RunState, "RUN_STATE", states)
        return self._pages(self._stub.ListRuns, pb.ListRunsRequest(page_size=PAGE, states=numbers), "runs")

    def explain_run(self, name: str) -> Plain:
        """Whom the run waits for, who is out, and what to do about it."""
        return self._ask(self._stub.ExplainRun, pb.ExplainRunRequest(name=name))

    def start_run(self, name: str) -> Plain:
        request = pb.StartRunRequest(request_id=_request_id(), name=name)
        return _only(self._ask(self._stub.StartRun, request, attempts=ATTEMPTS), "run")

    def pause_run(self, name: str) -> Plain:
        request = pb.PauseRunRequest(request_id=_request_id(), name=name)
        return _only(self._ask(self._stub.PauseRun, request, attempts=ATTEMPTS), "run")

    def resume_run(self, name: str) -> Plain:
        request = pb.ResumeRunRequest(request_id=_request_id(), name=name)
        return _only(self._ask(self._stub.ResumeRun, request, attempts=ATTEMPTS), "run")

    def cancel_run(self, name: str, *, reason: str) -> Plain:
        request = pb.CancelRunRequest(request_id=_request_id(), name=name, reason=reason)
        return _only(self._ask(self._stub.CancelRun, request, attempts=ATTEMPTS), "run")

    def roll_back_run(self, name: str, *, adapter_digest: str = "", adapter_round: int | None = None) -> Plain:
        """The adapter by its digest, or by the round that has made it."""
        request = pb.RollBackRunRequest(
            request_id=_request_id(), name=name, adapter_digest=adapter_digest, adapter_round=adapter_round
        )
        return _only(self._ask(self._stub.RollBackRun, request, attempts=ATTEMPTS), "run")

    # --- rounds, adapters, audit ----------------------------------------------------------------------------------

    def round(self, name: str) -> Plain:
        return _only(self._ask(self._stub.GetRound, pb.GetRoundRequest(name=name)), "round")

    def rounds(self, run: str, *, states: tuple[str, ...] = (), with_names: bool = True) -> Iterator[Plain]:
        """Newest first. with_names: of cohort, survivors and all who take part; without, their numbers alone."""
        numbers = _numbers(resources_pb2.RoundState, "ROUND_STATE", states)
        view = resources_pb2.ROUND_VIEW_FULL if with_names else resources_pb2.ROUND_VIEW_BASIC
        request = pb.ListRoundsRequest(run=run, page_size=PAGE, states=numbers, view=view)
        return self._pages(self._stub.ListRounds, request, "rounds")

    def adapters(self, run: str, *, states: tuple[str, ...] = ()) -> Iterator[Plain]:
        numbers = _numbers(resources_pb2.AdapterState, "ADAPTER_STATE", states)
        request = pb.ListAdaptersRequest(run=run, page_size=PAGE, states=numbers)
        return self._pages(self._stub.ListAdapters, request, "adapters")

    def export_adapter(self, digest: str, *, offset: int) -> Iterator[ExportHead | bytes]:
        """First the head, then the bytes of the model file from `offset` on."""
        request = pb.ExportAdapterRequest(digest=digest, offset=offset)
        with raised_as_errors():
            for message in self._stub.ExportAdapter(request, timeout=LONG_CALL_SECONDS):
                if message.peft_config_json:
                    yield ExportHead(message.peft_config_json, message.manifest_json, message.manifest_signature)
                if message.chunk:
                    yield message.chunk

    def import_adapter(self, file: Path) -> Plain:
        """Bring an adapter file for a run to begin from; its digest and size. Raises InvalidArgument if unreadable."""

        def parts() -> Iterator[pb.ImportAdapterRequest]:
            with file.open("rb") as stream:
                while chunk := stream.read(IMPORT_CHUNK_BYTES):
                    yield pb.ImportAdapterRequest(chunk=chunk)

        if not os.access(file, os.R_OK):
            raise InvalidArgument(f"{file} cannot be read")
        with raised_as_errors():
            return plain(self._stub.ImportAdapter(parts(), timeout=LONG_CALL_SECONDS))

    def audit_events(
        self, *, subject: str = "", actor: str = "", action: str = "", newest_first: bool = False
    ) -> Iterator[Plain]:
        """Those of exactly this resource, actor and action, where they are not empty."""
        request = pb.ListAuditEventsRequest(
            page_size=PAGE, subject=subject, actor=actor, action=action, newest_first=newest_first
        )
        return self._pages(self._stub.ListAuditEvents, request, "events")

    def verify_audit_log(self, *, expected_sequence: int = 0, expected_chain_digest: str = "") -> Plain:
        """expected: a head that was noted elsewhere."""
        request = pb.VerifyAuditLogRequest(
            expected_sequence=expected_sequence, expected_chain_digest=expected_chain_digest
        )
        return self._ask(self._stub.VerifyAuditLog, request, seconds=LONG_CALL_SECONDS)

    # --- web tokens -----------------------------------------------------------------------------------------------

    def create_web_token(self, label: str, *, ttl_seconds: int) -> Plain:
        """The row, and the text under "token", which is shown only once."""
        request = pb.CreateWebTokenRequest(request_id=_request_id(), label=label, ttl_seconds=ttl_seconds)
        return self._ask(self._stub.CreateWebToken, request, attempts=ATTEMPTS)

    def web_tokens(self) -> Iterator[Plain]:
        return self._pages(self._stub.ListWebTokens, pb.ListWebTokensRequest(page_size=PAGE), "web_tokens")

    def revoke_web_token(self, name: str) -> Plain:
        request = pb.RevokeWebTokenRequest(request_id=_request_id(), name=name)
        return _only(self._ask(self._stub.RevokeWebToken, request, attempts=ATTEMPTS), "web_token")

    # --- calls ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        call: Callable[..., Response],
        request: Request,
        *,
        attempts: int = 1,
        seconds: float = CALL_SECONDS,
    ) -> Plain:
        return plain(self._call(call, request, attempts=attempts, seconds=seconds))

    def _call(
        self, call: Callable[..., Response], request: Request, *, attempts: int = 1, seconds: float = CALL_SECONDS
    ) -> Response:
        """attempts > 1 only for requests with a request_id: a repeat of one that was done gets its first answer."""
        for attempt in range(1, attempts + 1):
            try:
                with raised_as_errors():
                    return call(request, timeout=seconds)
            except Unavailable as error:
                if attempt == attempts:
                    raise Unavailable(f"no answer from the coordinator at {self._address}: {error.message}") from error
                time.sleep(0.3 * attempt)
        raise AssertionError("attempts is at least 1")

    def _pages(self, call: Callable[..., Response], request: Request, rows: str) -> Iterator[Plain]:
        while True:
            answer = self._call(call, request)
            yield from (plain(row) for row in getattr(answer, rows))
            token = cast("str", getattr(answer, "next_page_token"))  # noqa: B009  every listing has it
            if not token:
                return
            setattr(request, "page_token", token)  # noqa: B010  every listing has it


def plan_settings(values: Mapping[str, object]) -> resources_pb2.PlanSettings:
    """Settings by their names in the API. Raises InvalidArgument for one that does not exist or has another type."""
    try:
        return json_format.ParseDict(dict(values), resources_pb2.PlanSettings())
    except json_format.ParseError as error:
        known = ", ".join(field.name for field in resources_pb2.PlanSettings.DESCRIPTOR.fields)
        raise InvalidArgument(f"settings: {error}; known are {known}") from error


def plain(message: Message) -> Plain:
    """A message as a dictionary with every field, in the API's order; a plan as an object."""
    values = {field.name: _field(message, cast("FieldDescriptor", field)) for field in message.DESCRIPTOR.fields}
    if "plan_json" in values:  # canonical JSON: writing it again gives the bytes that are digested
        values["plan"] = json.loads(str(values.pop("plan_json")) or "null")
    return values


def _field(message: Message, field: FieldDescriptor) -> object:
    value: Any = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: FieldDescriptor) -> object:
    if field.enum_type is not None:
        return _word(field.enum_type.values_by_number[value].name, field.enum_type.name)
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return plain(value)
    return value


def _word(name: str, enum: str) -> str:
    """ "RUN_STATE_RUNNING" of RunState as "running"."""
    prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in enum).lstrip("_")
    return name.removeprefix(f"{prefix}_").lower()


def _numbers(enum: _Enum[Number], prefix: str, words: tuple[str, ...]) -> list[Number]:
    """Short words as the API's numbers. Raises InvalidArgument for a word that it does not have."""
    try:
        return [enum.Value(f"{prefix}_{word.upper()}") for word in words]
    except ValueError:
        known = ", ".join(name.removeprefix(f"{prefix}_").lower() for name in enum.keys()[1:])
        raise InvalidArgument(f"state {', '.join(words)}: known are {known}") from None


def _only(answer: Plain, name: str) -> Plain:
    return cast("Plain", answer[name])


def _request_id() -> str:
    return str(uuid.uuid4())
