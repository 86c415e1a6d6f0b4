"""What the coordinator needs from its database, whatever database that is.

A transaction is a unit of work: all of it is durable when the `with` block ends well, none of it when it raises.
Reads inside a write transaction see a state that nobody else changes before it ends. Methods are sync; callers on an
event loop go through `asyncio.to_thread`. Knows nothing of SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from common.states import RoundState, RunState
from coordinator.rounds.model import (
    Adapter,
    AdapterState,
    AuditEvent,
    Certificate,
    JoinToken,
    KeyEpoch,
    MessageKind,
    Participant,
    ParticipantState,
    Participation,
    ProtocolMessage,
    Round,
    Run,
    RunMember,
    ShareEnvelope,
    Upload,
    WebToken,
)
from coordinator.store.audit import AuditHead

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows of a listing and the token for the next ones, empty at the end."""

    rows: tuple[Row, ...]
    next_token: str = ""


class Reader(Protocol):
    """What can be read. Getters raise NotFound with the name; lists are in the order that is said."""

    # runs
    def run(self, name: str) -> Run: ...
    def runs(self, *, states: Sequence[RunState] = (), page_size: int = 0, page_token: str = "") -> Page[Run]:
        """Newest first. page_size 0 means all."""

    def runs_ended_after(self, time: datetime) -> tuple[Run, ...]:
        """Oldest first, whenever they were created."""

    def run_member(self, run: str, participant: str) -> RunMember | None: ...
    def run_members(self, run: str) -> tuple[RunMember, ...]:
        """By participant."""

    # rounds
    def round(self, run: str, number: int) -> Round: ...
    def rounds(
        self, run: str, *, states: Sequence[RoundState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page[Round]:
        """Newest first."""

    def participation(self, run: str, round_number: int, participant: str) -> Participation | None: ...
    def participations(self, run: str, round_number: int) -> tuple[Participation, ...]:
        """By participant."""

    def upload(self, run: str, round_number: int, participant: str) -> Upload | None: ...
    def uploads(self, run: str, round_number: int) -> tuple[Upload, ...]:
        """By participant."""

    def receipts(self, run: str, round_number: int) -> tuple[tuple[str, bytes], ...]:
        """(participant, receipt) of each complete upload, by participant."""

    # key epochs and protocol messages
    def epoch(self, run: str, number: int) -> KeyEpoch: ...
    def message(self, run: str, kind: MessageKind, number: int, sender: str) -> ProtocolMessage | None: ...
    def messages(self, run: str, kind: MessageKind, number: int) -> Iterator[ProtocolMessage]:
        """By sender, a few of them in memory at a time. Only within the transaction."""

    def message_senders(self, run: str, kind: MessageKind, number: int) -> tuple[str, ...]:
        """By sender, without the bodies."""

    def message_count(self, run: str, kind: MessageKind, number: int) -> int: ...
    def has_message(self, run: str, kind: MessageKind, number: int, sender: str) -> bool: ...
    def share_envelopes(self, run: str, epoch: int, holder: str, *, after: str = "") -> Iterator[ShareEnvelope]:
        """Those of one holder whose owners come after `after`, by owner; otherwise as `messages`."""

    # adapters
    def adapter(self, digest: str) -> Adapter: ...
    def adapters(
        self, run: str, *, states: Sequence[AdapterState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page[Adapter]:
        """Newest first."""

    # identities
    def participant(self, name: str) -> Participant: ...
    def participants(
        self, *, states: Sequence[ParticipantState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page[Participant]:
        """By name."""

    def certificate(self, serial: str) -> Certificate: ...
    def is_revoked(self, *, participant: str, serial: str) -> bool:
        """Whether the participant, or this certificate, was revoked. False for certificates of foreign CAs."""

    def join_token(self, name: str) -> JoinToken: ...
    def join_token_by_secret(self, secret_sha256: str) -> JoinToken: ...
    def join_tokens(
        self,
        *,
        participant: str = "",
        open_at: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[JoinToken]:
        """Newest first. participant: only tokens for it. open_at: only those that could be used at that moment."""

    def web_token(self, name: str) -> WebToken: ...
    def web_token_by_secret(self, secret_sha256: str) -> WebToken: ...
    def web_tokens(self, *, page_size: int = 0, page_token: str = "") -> Page[WebToken]:
        """Newest first."""

    # charter, answers, audit
    def charter(self) -> bytes:
        """The charter published last, byte for byte."""

    def charter_by_digest(self, digest: str) -> bytes: ...
    def answer(self, caller: str, request_id: str) -> bytes | None:
        """What this caller's request of that id was answered with; None if it is new."""

    def audit_events(
        self,
        *,
        subject: str = "",
        actor: str = "",
        action: str = "",
        newest_first: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[AuditEvent]:
        """Oldest first, or newest first. subject, actor, action: only what has exactly these, where not empty."""

    def audit_event(self, sequence: int) -> AuditEvent: ...

    def audit_chain(self) -> Iterator[AuditEvent]:
        """All events, oldest first, without holding them in memory."""

    def audit_head(self) -> AuditHead:
        """Where the log ends, kept apart from it, so that `audit.verify` can tell that last events are missing."""


class Writer(Reader, Protocol):
    """What can be changed. `add_*` raises AlreadyExists; `update_*` raises NotFound, and VersionConflict unless
    `version` is the one stored plus one (the pure functions count it up); `put_*` writes whatever was there.

    A row that refers to a run, round or participant that does not exist makes the end of the block raise NotFound;
    the order within a transaction does not matter. Text with NUL, figures that are not finite, times without a zone
    and negative integers are refused with InvalidArgument.
    """

    def add_run(self, run: Run) -> None: ...
    def update_run(self, run: Run) -> None: ...
    def put_run_member(self, member: RunMember) -> None: ...

    def add_round(self, round_: Round) -> None: ...
    def update_round(self, round_: Round) -> None: ...
    def put_participation(self, participation: Participation) -> None: ...
    def put_upload(self, upload: Upload) -> None: ...

    def add_epoch(self, epoch: KeyEpoch) -> None: ...
    def update_epoch(self, epoch: KeyEpoch) -> None: ...
    def add_message(self, message: ProtocolMessage) -> bool:
        """True if it is new, False if the same was there. Raises AlreadyExists if another one was there."""

    def delete_messages(self, run: str, kind: MessageKind, *, before: int) -> None:
        """Those of all lower numbers."""

    def add_share_envelopes(self, envelopes: Iterable[ShareEnvelope]) -> None:
        """Raises AlreadyExists if any of them is there already."""

    def delete_share_envelopes(self, run: str, *, before: int) -> None:
        """Those of all lower epochs."""

    def add_adapter(self, adapter: Adapter) -> None:
        """Harmless if the same digest is there already for the same run and round."""

    def set_adapter_state(self, digest: str, state: AdapterState, *, heldout_loss: float | None) -> None:
        """Raises NotFound. A heldout_loss of None leaves the stored one as it is."""

    def put_participant(self, participant: Participant) -> None: ...
    def touch_participant(self, name: str, *, seen_at: datetime, software_version: str) -> None:
        """Raises NotFound."""

    def add_certificate(self, certificate: Certificate) -> None: ...
    def revoke_participant(self, name: str, *, at: datetime, reason: str) -> None:
        """Revokes the participant and every certificate of it. The first reason and time stay. Raises NotFound."""

    def add_join_token(self, token: JoinToken) -> None: ...
    def update_join_token(self, token: JoinToken) -> None:
        """Raises VersionConflict if the token was used or revoked otherwise meanwhile: a token is used once."""

    def add_web_token(self, token: WebToken) -> None: ...
    def revoke_web_token(self, name: str, *, at: datetime) -> None:
        """The first time stays. Raises NotFound."""

    def publish_charter(self, charter: bytes, digest: str, *, at: datetime) -> None:
        """Puts a charter in force; publishing an earlier one again puts that in force again."""

    def put_answer(self, caller: str, request_id: str, answer: bytes, *, at: datetime) -> None: ...
    def delete_answers(self, *, before: datetime) -> None:
        """Forget what was answered before that moment."""

    def append_audit(self, *, time: datetime, actor: str, action: str, subject: str, details: str) -> AuditEvent:
        """Appends a line and chains it: SHA-256(previous chain digest || canonical line)."""


class Store(Protocol):
    """A coordinator's database."""

    def read(self) -> AbstractContextManager[Reader]:
        """A consistent snapshot."""

    def write(self) -> AbstractContextManager[Writer]:
        """A transaction; commits when the block ends well, rolls back when it raises."""

    def acquire_lease(self, name: str, *, holder: str, now: datetime, until: datetime) -> bool:
        """Take or renew the lease `name`; False while another holder's lease has not run out."""

    def release_lease(self, name: str, *, holder: str) -> None: ...

    def ping(self) -> None:
        """Raises StorageFailed if the database does not answer, or its clock and this host's are far apart."""

    def close(self) -> None: ...
