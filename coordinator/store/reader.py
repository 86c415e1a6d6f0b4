"""What can be read from the database, inside a transaction that somebody else began and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, exists, func, or_, select

from common.errors import NotFound
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
from coordinator.store import rows, tables
from coordinator.store.audit import AuditHead
from coordinator.store.interface import Page
from coordinator.store.pages import Listing
from coordinator.store.rows import RowTable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")

_RUNS: Final = Listing(rows.RUNS, ("created_at", "name"), newest_first=True)
_ROUNDS: Final = Listing(rows.ROUNDS, ("number",), newest_first=True)
_ADAPTERS: Final = Listing(rows.ADAPTERS, ("round",), newest_first=True)
_PARTICIPANTS: Final = Listing(rows.PARTICIPANTS, ("name",), newest_first=False)
_ALL_PARTICIPANTS: Final = _PARTICIPANTS.statement(page_size=0, where=())
_JOIN_TOKENS: Final = Listing(rows.JOIN_TOKENS, ("created_at", "name"), newest_first=True)
_WEB_TOKENS: Final = Listing(rows.WEB_TOKENS, ("created_at", "name"), newest_first=True)
_AUDIT_EVENTS: Final = Listing(rows.AUDIT_EVENTS, ("sequence",), newest_first=False)
_NEWEST_AUDIT_EVENTS: Final = Listing(rows.AUDIT_EVENTS, ("sequence",), newest_first=True)

_CHAIN_BATCH: Final = 500
# Rows of up to a few hundred kilobytes that are in memory at once where rows are read one after the other.
_ROWS_AT_ONCE: Final = 8


def _by(table: Table, *names: str) -> list[ColumnElement[bool]]:
    return [table.c[name] == bindparam(name) for name in names]


_RUNS_ENDED: Final = rows.RUNS.all.where(tables.RUNS.c.ended_at > bindparam("time")).order_by("ended_at", "name")
_RUN_MEMBERS: Final = rows.RUN_MEMBERS.all.where(*_by(tables.RUN_MEMBERS, "run")).order_by("participant")
_PARTICIPATIONS: Final = rows.PARTICIPATIONS.all.where(*_by(tables.PARTICIPATIONS, "run", "round")).order_by(
    "participant"
)
_UPLOADS: Final = rows.UPLOADS.all.where(*_by(tables.UPLOADS, "run", "round")).order_by("participant")
_RECEIPTS: Final = (
    select(tables.UPLOADS.c.participant, tables.UPLOADS.c.receipt)
    .where(*_by(tables.UPLOADS, "run", "round"), tables.UPLOADS.c.is_complete)
    .order_by("participant")
)
_OF_A_STEP: Final = _by(tables.PROTOCOL_MESSAGES, "run", "kind", "number")
_MESSAGES: Final = rows.PROTOCOL_MESSAGES.all.where(*_OF_A_STEP).order_by("sender")
_MESSAGE_SENDERS: Final = select(tables.PROTOCOL_MESSAGES.c.sender).where(*_OF_A_STEP).order_by("sender")
_MESSAGE_COUNT: Final = select(func.count()).select_from(tables.PROTOCOL_MESSAGES).where(*_OF_A_STEP)
_HAS_MESSAGE: Final = select(exists().where(*_OF_A_STEP, *_by(tables.PROTOCOL_MESSAGES, "sender")))
_SHARE_ENVELOPES: Final = rows.SHARE_ENVELOPES.all.where(
    *_by(tables.SHARE_ENVELOPES, "run", "epoch", "holder"), tables.SHARE_ENVELOPES.c.owner > bindparam("after")
).order_by("owner")
_JOIN_TOKEN_BY_SECRET: Final = rows.JOIN_TOKENS.all.where(*_by(tables.JOIN_TOKENS, "secret_sha256"))
_WEB_TOKEN_BY_SECRET: Final = rows.WEB_TOKENS.all.where(*_by(tables.WEB_TOKENS, "secret_sha256"))
_IS_REVOKED: Final = select(
    or_(
        exists().where(
            tables.PARTICIPANTS.c.name == bindparam("participant"),
            tables.PARTICIPANTS.c.state == ParticipantState.REVOKED,
        ),
        exists().where(
            tables.CERTIFICATES.c.serial == bindparam("serial"), tables.CERTIFICATES.c.revoked_at.is_not(None)
        ),
    )
)
_CHARTER: Final = select(tables.CHARTERS.c.charter).order_by(tables.CHARTERS.c.publication.desc()).limit(1)
_CHARTER_BY_DIGEST: Final = select(tables.CHARTERS.c.charter).where(*_by(tables.CHARTERS, "digest"))
_ANSWER: Final = select(tables.ANSWERS.c.answer).where(*_by(tables.ANSWERS, "caller", "request_id"))
_AUDIT_AFTER: Final = (
    rows.AUDIT_EVENTS.all.where(tables.AUDIT_EVENTS.c.sequence > bindparam("after"))
    .order_by("sequence")
    .limit(_CHAIN_BATCH)
)
_AUDIT_HEAD: Final = select(tables.AUDIT_HEAD.c.sequence, tables.AUDIT_HEAD.c.chain_digest)


def _in(table: Table, states: Sequence[Enum]) -> list[ColumnElement[bool]]:
    return [table.c.state.in_(states)] if states else []


def _words(states: Sequence[Enum]) -> tuple[str, ...]:
    """States as a page token names them."""
    return tuple(sorted({str(state.value) for state in states}))


@lru_cache(maxsize=64)
def _newest_runs(states: tuple[RunState, ...], page_size: int) -> Select[tuple[object, ...]]:
    """Asked with every long poll and every turn of the driver."""
    return _RUNS.statement(page_size=page_size, where=_in(tables.RUNS, states))


class SqlReader:
    """Implements `interface.Reader` over one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    # runs

    def run(self, name: str) -> Run:
        return self._one(rows.RUNS, {"name": name}, f"run {name!r}")

    def runs(self, *, states: Sequence[RunState] = (), page_size: int = 0, page_token: str = "") -> Page[Run]:
        scope = _words(states)
        if not page_token:
            statement = _newest_runs(tuple(states), page_size)
            return _RUNS.fetch(self.connection, statement, page_size=page_size, scope=scope)
        return _RUNS.page(
            self.connection, page_size=page_size, page_token=page_token, where=_in(tables.RUNS, states), scope=scope
        )

    def runs_ended_after(self, time: datetime) -> tuple[Run, ...]:
        return self._many(rows.RUNS, _RUNS_ENDED, {"time": time})

    def run_member(self, run: str, participant: str) -> RunMember | None:
        return self._find(rows.RUN_MEMBERS, {"run": run, "participant": participant})

    def run_members(self, run: str) -> tuple[RunMember, ...]:
        return self._many(rows.RUN_MEMBERS, _RUN_MEMBERS, {"run": run})

    # rounds

    def round(self, run: str, number: int) -> Round:
        return self._one(rows.ROUNDS, {"run": run, "number": number}, f"round {number} of run {run!r}")

    def rounds(
        self, run: str, *, states: Sequence[RoundState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page[Round]:
        where = [tables.ROUNDS.c.run == run, *_in(tables.ROUNDS, states)]
        scope = (run, *_words(states))
        return _ROUNDS.page(self.connection, page_size=page_size, page_token=page_token, where=where, scope=scope)

    def participation(self, run: str, round_number: int, participant: str) -> Participation | None:
        return self._find(rows.PARTICIPATIONS, {"run": run, "round": round_number, "participant": participant})

    def participations(self, run: str, round_number: int) -> tuple[Participation, ...]:
        return self._many(rows.PARTICIPATIONS, _PARTICIPATIONS, {"run": run, "round": round_number})

    def upload(self, run: str, round_number: int, participant: str) -> Upload | None:
        return self._find(rows.UPLOADS, {"run": run, "round": round_number, "participant": participant})

    def uploads(self, run: str, round_number: int) -> tuple[Upload, ...]:
        return self._many(rows.UPLOADS, _UPLOADS, {"run": run, "round": round_number})

    def receipts(self, run: str, round_number: int) -> tuple[tuple[str, bytes], ...]:
        found = self.connection.execute(_RECEIPTS, {"run": run, "round": round_number})
        return tuple((participant, receipt) for participant, receipt in found)

    # key epochs and protocol messages

    def epoch(self, run: str, number: int) -> KeyEpoch:
        return self._one(rows.KEY_EPOCHS, {"run": run, "number": number}, f"key epoch {number} of run {run!r}")

    def message(self, run: str, kind: MessageKind, number: int, sender: str) -> ProtocolMessage | None:
        return self._find(rows.PROTOCOL_MESSAGES, {"run": run, "kind": kind, "number": number, "sender": sender})

    def messages(self, run: str, kind: MessageKind, number: int) -> Iterator[ProtocolMessage]:
        return self._each(rows.PROTOCOL_MESSAGES, _MESSAGES, {"run": run, "kind": kind, "number": number})

    def message_senders(self, run: str, kind: MessageKind, number: int) -> tuple[str, ...]:
        found = self.connection.execute(_MESSAGE_SENDERS, {"run": run, "kind": kind, "number": number})
        return tuple(found.scalars())

    def message_count(self, run: str, kind: MessageKind, number: int) -> int:
        found = self.connection.execute(_MESSAGE_COUNT, {"run": run, "kind": kind, "number": number})
        return int(found.scalar_one())

    def has_message(self, run: str, kind: MessageKind, number: int, sender: str) -> bool:
        values = {"run": run, "kind": kind, "number": number, "sender": sender}
        return bool(self.connection.execute(_HAS_MESSAGE, values).scalar_one())

    def share_envelopes(self, run: str, epoch: int, holder: str, *, after: str = "") -> Iterator[ShareEnvelope]:
        values = {"run": run, "epoch": epoch, "holder": holder, "after": after}
        return self._each(rows.SHARE_ENVELOPES, _SHARE_ENVELOPES, values)

    # adapters

    def adapter(self, digest: str) -> Adapter:
        return self._one(rows.ADAPTERS, {"digest": digest}, f"adapter {digest!r}")

    def adapters(
        self, run: str, *, states: Sequence[AdapterState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page[Adapter]:
        where = [tables.ADAPTERS.c.run == run, *_in(tables.ADAPTERS, states)]
        scope = (run, *_words(states))
        return _ADAPTERS.page(self.connection, page_size=page_size, page_token=page_token, where=where, scope=scope)

    # identities

    def participant(self, name: str) -> Participant:
        return self._one(rows.PARTICIPANTS, {"name": name}, f"participant {name!r}")

    def participants(
        self, *, states: Sequence[ParticipantState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page[Participant]:
        if not page_size and not page_token and not states:
            return _PARTICIPANTS.fetch(self.connection, _ALL_PARTICIPANTS, page_size=0)
        return _PARTICIPANTS.page(
            self.connection,
            page_size=page_size,
            page_token=page_token,
            where=_in(tables.PARTICIPANTS, states),
            scope=_words(states),
        )

    def certificate(self, serial: str) -> Certificate:
        return self._one(rows.CERTIFICATES, {"serial": serial}, f"certificate {serial!r}")

    def is_revoked(self, *, participant: str, serial: str) -> bool:
        found = self.connection.execute(_IS_REVOKED, {"participant": participant, "serial": serial})
        return bool(found.scalar_one())

    def join_token(self, name: str) -> JoinToken:
        return self._one(rows.JOIN_TOKENS, {"name": name}, f"join token {name!r}")

    def join_token_by_secret(self, secret_sha256: str) -> JoinToken:
        found = self._many(rows.JOIN_TOKENS, _JOIN_TOKEN_BY_SECRET, {"secret_sha256": secret_sha256})
        if not found:
            raise NotFound("there is no join token with this secret")
        return found[0]

    def join_tokens(
        self,
        *,
        participant: str = "",
        open_at: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[JoinToken]:
        columns = tables.JOIN_TOKENS.c
        where = [columns.participant == participant] if participant else []
        if open_at is not None:
            where += [columns.used_at.is_(None), columns.revoked_at.is_(None), columns.expires_at > open_at]
        return _JOIN_TOKENS.page(
            self.connection,
            page_size=page_size,
            page_token=page_token,
            where=where,
            scope=(participant, "all" if open_at is None else "open"),
        )

    def web_token(self, name: str) -> WebToken:
        return self._one(rows.WEB_TOKENS, {"name": name}, f"web token {name!r}")

    def web_token_by_secret(self, secret_sha256: str) -> WebToken:
        found = self._many(rows.WEB_TOKENS, _WEB_TOKEN_BY_SECRET, {"secret_sha256": secret_sha256})
        if not found:
            raise NotFound("there is no web token with this secret")
        return found[0]

    def web_tokens(self, *, page_size: int = 0, page_token: str = "") -> Page[WebToken]:
        return _WEB_TOKENS.page(self.connection, page_size=page_size, page_token=page_token)

    # charter, answers, audit

    def charter(self) -> bytes:
        found: bytes | None = self.connection.execute(_CHARTER).scalar()
        if found is None:
            raise NotFound("no charter has been published yet")
        return found

    def charter_by_digest(self, digest: str) -> bytes:
        found: bytes | None = self.connection.execute(_CHARTER_BY_DIGEST, {"digest": digest}).scalar()
        if found is None:
            raise NotFound(f"charter {digest!r} was never published here")
        return found

    def answer(self, caller: str, request_id: str) -> bytes | None:
        found: bytes | None = self.connection.execute(_ANSWER, {"caller": caller, "request_id": request_id}).scalar()
        return found

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
        listing = _NEWEST_AUDIT_EVENTS if newest_first else _AUDIT_EVENTS
        wanted = {"subject": subject, "actor": actor, "action": action}
        where = [tables.AUDIT_EVENTS.c[name] == value for name, value in wanted.items() if value]
        scope = (subject, actor, action, "newest first" if newest_first else "oldest first")
        return listing.page(self.connection, page_size=page_size, page_token=page_token, where=where, scope=scope)

    def audit_event(self, sequence: int) -> AuditEvent:
        return self._one(rows.AUDIT_EVENTS, {"sequence": sequence}, f"audit event {sequence}")

    def audit_chain(self) -> Iterator[AuditEvent]:
        last = 0
        while found := self._many(rows.AUDIT_EVENTS, _AUDIT_AFTER, {"after": last}):
            yield from found
            last = found[-1].sequence

    def audit_head(self) -> AuditHead:
        found = self.connection.execute(_AUDIT_HEAD).one_or_none()
        return AuditHead() if found is None else AuditHead(sequence=found[0], chain_digest=found[1])

    # how

    def _find(self, of: RowTable[Row], key: Mapping[str, object]) -> Row | None:
        found = self.connection.execute(of.one, key).one_or_none()
        return None if found is None else of.row(found)

    def _one(self, of: RowTable[Row], key: Mapping[str, object], what: str) -> Row:
        found = self._find(of, key)
        if found is None:
            raise NotFound(f"there is no {what}")
        return found

    def _many(
        self, of: RowTable[Row], statement: Select[tuple[object, ...]], values: Mapping[str, object]
    ) -> tuple[Row, ...]:
        return tuple(map(of.row, self.connection.execute(statement, values)))

    def _each(
        self, of: RowTable[Row], statement: Select[tuple[object, ...]], values: Mapping[str, object]
    ) -> Iterator[Row]:
        # Without yield_per a driver may fetch whatever the statement finds before it hands out the first row.
        options = {"yield_per": _ROWS_AT_ONCE}
        with self.connection.execute(statement, values, execution_options=options) as found:
            yield from map(of.row, found)
