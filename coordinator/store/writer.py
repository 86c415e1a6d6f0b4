"""What can be changed in the database, inside a transaction that somebody else began and ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import Connection, Update, bindparam, delete, func, insert, or_, select, update

from common.errors import AlreadyExists, NotFound, VersionConflict
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
from coordinator.store import rows, tables
from coordinator.store.audit import chain_digest
from coordinator.store.reader import SqlReader
from coordinator.store.rows import RowTable, insert_or_replace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")

_UPDATE_RUN: Final = rows.RUNS.update("version")
_UPDATE_ROUND: Final = rows.ROUNDS.update("version")
_UPDATE_EPOCH: Final = rows.KEY_EPOCHS.update("version")
_TOKENS: Final = tables.JOIN_TOKENS.c
_UPDATE_TOKEN: Final = rows.JOIN_TOKENS.update().where(
    or_(_TOKENS.used_at.is_(None), _TOKENS.used_at == bindparam("new_used_at")),
    or_(_TOKENS.used_certificate.is_(None), _TOKENS.used_certificate == bindparam("new_used_certificate")),
    or_(_TOKENS.revoked_at.is_(None), _TOKENS.revoked_at == bindparam("new_revoked_at")),
)
_MESSAGES: Final = tables.PROTOCOL_MESSAGES.c
_DELETE_MESSAGES: Final = delete(tables.PROTOCOL_MESSAGES).where(
    _MESSAGES.run == bindparam("run"), _MESSAGES.kind == bindparam("kind"), _MESSAGES.number < bindparam("before")
)
_ENVELOPES: Final = tables.SHARE_ENVELOPES.c
_ADD_ENVELOPES: Final = insert(tables.SHARE_ENVELOPES)
_DELETE_ENVELOPES: Final = delete(tables.SHARE_ENVELOPES).where(
    _ENVELOPES.run == bindparam("of_run"), _ENVELOPES.epoch < bindparam("before")
)
_SET_ADAPTER_STATE: Final = (
    update(tables.ADAPTERS)
    .where(tables.ADAPTERS.c.digest == bindparam("key_digest"))
    .values(state=bindparam("new_state"), heldout_loss=func.coalesce(bindparam("loss"), tables.ADAPTERS.c.heldout_loss))
)
_TOUCH_PARTICIPANT: Final = (
    update(tables.PARTICIPANTS)
    .where(tables.PARTICIPANTS.c.name == bindparam("key_name"))
    .values(last_seen_at=bindparam("seen_at"), software_version=bindparam("version"))
)
_REVOKE_PARTICIPANT: Final = (
    update(tables.PARTICIPANTS)
    .where(tables.PARTICIPANTS.c.name == bindparam("key_name"), tables.PARTICIPANTS.c.state != ParticipantState.REVOKED)
    .values(state=ParticipantState.REVOKED, revoke_reason=bindparam("why"))
)
_REVOKE_CERTIFICATES: Final = (
    update(tables.CERTIFICATES)
    .where(
        tables.CERTIFICATES.c.participant == bindparam("key_participant"), tables.CERTIFICATES.c.revoked_at.is_(None)
    )
    .values(revoked_at=bindparam("at"))
)
_REVOKE_WEB_TOKEN: Final = (
    update(tables.WEB_TOKENS)
    .where(tables.WEB_TOKENS.c.name == bindparam("key_name"), tables.WEB_TOKENS.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("at"))
)
_LAST_PUBLICATION: Final = select(func.coalesce(func.max(tables.CHARTERS.c.publication), 0))
_PUT_CHARTER: Final = insert_or_replace(tables.CHARTERS)
_PUT_ANSWER: Final = insert_or_replace(tables.ANSWERS)
_DELETE_ANSWERS: Final = delete(tables.ANSWERS).where(tables.ANSWERS.c.answered_at < bindparam("before"))
_PUT_AUDIT_HEAD: Final = insert_or_replace(tables.AUDIT_HEAD)


class SqlWriter(SqlReader):
    """Implements `interface.Writer` over one connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._dialect = connection.dialect.name

    # runs

    def add_run(self, run: Run) -> None:
        self._add(rows.RUNS, run, f"run {run.name!r}")

    def update_run(self, run: Run) -> None:
        self._update(rows.RUNS, _UPDATE_RUN, run, run.version, f"run {run.name!r}")

    def put_run_member(self, member: RunMember) -> None:
        self._put(rows.RUN_MEMBERS, member)

    # rounds

    def add_round(self, round_: Round) -> None:
        self._add(rows.ROUNDS, round_, f"round {round_.number} of run {round_.run!r}")

    def update_round(self, round_: Round) -> None:
        what = f"round {round_.number} of run {round_.run!r}"
        self._update(rows.ROUNDS, _UPDATE_ROUND, round_, round_.version, what)

    def put_participation(self, participation: Participation) -> None:
        self._put(rows.PARTICIPATIONS, participation)

    def put_upload(self, upload: Upload) -> None:
        self._put(rows.UPLOADS, upload)

    # key epochs and protocol messages

    def add_epoch(self, epoch: KeyEpoch) -> None:
        self._add(rows.KEY_EPOCHS, epoch, f"key epoch {epoch.number} of run {epoch.run!r}")

    def update_epoch(self, epoch: KeyEpoch) -> None:
        what = f"key epoch {epoch.number} of run {epoch.run!r}"
        self._update(rows.KEY_EPOCHS, _UPDATE_EPOCH, epoch, epoch.version, what)

    def add_message(self, message: ProtocolMessage) -> bool:
        if self._insert(rows.PROTOCOL_MESSAGES, message):
            return True
        stored = self._find(rows.PROTOCOL_MESSAGES, rows.PROTOCOL_MESSAGES.key_values(message))
        if stored != message:
            raise AlreadyExists(
                f"{message.sender!r} has already sent another {message.kind.value} for number {message.number} of run "
                f"{message.run!r}; the first one stays"
            )
        return False

    def delete_messages(self, run: str, kind: MessageKind, *, before: int) -> None:
        self.connection.execute(_DELETE_MESSAGES, {"run": run, "kind": kind, "before": before})

    def add_share_envelopes(self, envelopes: Iterable[ShareEnvelope]) -> None:
        values = [rows.SHARE_ENVELOPES.values(envelope) for envelope in envelopes]
        if values:  # an empty list would insert one row of nothing
            self.connection.execute(_ADD_ENVELOPES, values)

    def delete_share_envelopes(self, run: str, *, before: int) -> None:
        self.connection.execute(_DELETE_ENVELOPES, {"of_run": run, "before": before})

    # adapters

    def add_adapter(self, adapter: Adapter) -> None:
        if self._insert(rows.ADAPTERS, adapter):
            return
        stored = self._find(rows.ADAPTERS, {"digest": adapter.digest})
        if stored is None:
            raise AlreadyExists(f"round {adapter.round} of run {adapter.run!r} has already published another adapter")
        if (stored.run, stored.round) != (adapter.run, adapter.round):
            raise AlreadyExists(
                f"adapter {adapter.digest!r} was already published by round {stored.round} of run {stored.run!r}"
            )

    def set_adapter_state(self, digest: str, state: AdapterState, *, heldout_loss: float | None) -> None:
        values = {"key_digest": digest, "new_state": state, "loss": heldout_loss}
        if self.connection.execute(_SET_ADAPTER_STATE, values).rowcount != 1:
            raise NotFound(f"there is no adapter {digest!r}")

    # identities

    def put_participant(self, participant: Participant) -> None:
        self._put(rows.PARTICIPANTS, participant)

    def touch_participant(self, name: str, *, seen_at: datetime, software_version: str) -> None:
        values = {"key_name": name, "seen_at": seen_at, "version": software_version}
        if self.connection.execute(_TOUCH_PARTICIPANT, values).rowcount != 1:
            raise NotFound(f"there is no participant {name!r}")

    def add_certificate(self, certificate: Certificate) -> None:
        self._add(rows.CERTIFICATES, certificate, f"certificate {certificate.serial!r}")

    def revoke_participant(self, name: str, *, at: datetime, reason: str) -> None:
        if self.connection.execute(_REVOKE_PARTICIPANT, {"key_name": name, "why": reason}).rowcount != 1:
            self.participant(name)  # Revoked before; or raises NotFound.
        self.connection.execute(_REVOKE_CERTIFICATES, {"key_participant": name, "at": at})

    def add_join_token(self, token: JoinToken) -> None:
        self._add(rows.JOIN_TOKENS, token, f"join token {token.name!r}, or one with the same secret,")

    def update_join_token(self, token: JoinToken) -> None:
        values = {
            **rows.JOIN_TOKENS.update_values(token),
            "new_used_at": token.used_at,
            "new_used_certificate": token.used_certificate,
            "new_revoked_at": token.revoked_at,
        }
        if self.connection.execute(_UPDATE_TOKEN, values).rowcount != 1:
            self.join_token(token.name)
            raise VersionConflict(f"join token {token.name!r} was used or revoked meanwhile; read it again")

    def add_web_token(self, token: WebToken) -> None:
        self._add(rows.WEB_TOKENS, token, f"web token {token.name!r}, or one with the same secret,")

    def revoke_web_token(self, name: str, *, at: datetime) -> None:
        self.web_token(name)
        self.connection.execute(_REVOKE_WEB_TOKEN, {"key_name": name, "at": at})

    # charter, answers, audit

    def publish_charter(self, charter: bytes, digest: str, *, at: datetime) -> None:
        last: int = self.connection.execute(_LAST_PUBLICATION).scalar_one()
        values = {"digest": digest, "charter": charter, "publication": last + 1, "published_at": at}
        self.connection.execute(_PUT_CHARTER[self._dialect], values)

    def put_answer(self, caller: str, request_id: str, answer: bytes, *, at: datetime) -> None:
        values = {"caller": caller, "request_id": request_id, "answer": answer, "answered_at": at}
        self.connection.execute(_PUT_ANSWER[self._dialect], values)

    def delete_answers(self, *, before: datetime) -> None:
        self.connection.execute(_DELETE_ANSWERS, {"before": before})

    def append_audit(self, *, time: datetime, actor: str, action: str, subject: str, details: str) -> AuditEvent:
        head = self.audit_head()
        line = AuditEvent(
            sequence=head.sequence + 1,
            time=time,
            actor=actor,
            action=action,
            subject=subject,
            details=details,
            chain_digest="",
        )
        event = replace(line, chain_digest=chain_digest(head.chain_digest, line))
        self._add(rows.AUDIT_EVENTS, event, f"audit event {event.sequence}")
        values = {"id": 1, "sequence": event.sequence, "chain_digest": event.chain_digest}
        self.connection.execute(_PUT_AUDIT_HEAD[self._dialect], values)
        return event

    # how

    def _insert(self, into: RowTable[Row], row: Row) -> bool:
        return self.connection.execute(into.insert_new[self._dialect], into.values(row)).rowcount == 1

    def _add(self, into: RowTable[Row], row: Row, what: str) -> None:
        if not self._insert(into, row):
            raise AlreadyExists(f"{what} exists already")

    def _put(self, into: RowTable[Row], row: Row) -> None:
        self.connection.execute(into.insert_or_replace[self._dialect], into.values(row))

    def _update(self, of: RowTable[Row], statement: Update, row: Row, version: int, what: str) -> None:
        values = {**of.update_values(row), "seen_version": version - 1}
        if self.connection.execute(statement, values).rowcount == 1:
            return
        self._one(of, of.key_values(row), what)
        raise VersionConflict(f"{what} was changed meanwhile; read it again and repeat")
