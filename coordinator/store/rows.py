"""Row types and their tables: the statements that fit any of them, built once.

Building a statement costs more than running it, so the common ones are made at import and the dialect's compiled form
is found in SQLAlchemy's cache. Knows nothing of connections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from sqlalchemy import Row as SqlRow
from sqlalchemy import Select, Table, Update, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from coordinator.rounds.model import (
    Adapter,
    AuditEvent,
    Certificate,
    JoinToken,
    KeyEpoch,
    Participant,
    Participation,
    ProtocolMessage,
    Round,
    Run,
    RunMember,
    ShareEnvelope,
    Upload,
    WebToken,
)
from coordinator.store import tables

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")

Insert = sqlite.Insert | postgresql.Insert
INSERT: Final[Mapping[str, Callable[[Table], Insert]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class RowTable(Generic[Row]):
    """One row type in one table."""

    def __init__(self, row_type: type[Row], table: Table) -> None:
        self.table: Final = table
        self.names: Final = tuple(field.name for field in dataclasses.fields(row_type))
        if self.names != tuple(column.name for column in table.columns):
            raise TypeError(f"table {table.name} does not have the fields of {row_type.__name__}")
        self.key: Final = tuple(column.name for column in table.primary_key)
        self._make: Final = cast("Callable[..., Row]", row_type)
        self.all: Final[Select[tuple[object, ...]]] = select(table)
        self.one: Final = self.all.where(*(table.c[name] == bindparam(name) for name in self.key))
        self.insert_new: Final = insert_new(table)
        self.insert_or_replace: Final = insert_or_replace(table)

    def values(self, row: Row) -> dict[str, object]:
        return {name: getattr(row, name) for name in self.names}

    def row(self, found: SqlRow[tuple[object, ...]]) -> Row:
        return self._make(*found)

    def update(self, *guards: str) -> Update:
        """UPDATE of the fields for which there are parameters, as in `update_values`.

        `guards`: fields that must be stored as the parameter "seen_<field>" says.
        """
        columns = self.table.c
        return (
            self.table.update()
            .where(*(columns[name] == bindparam(f"key_{name}") for name in self.key))
            .where(*(columns[name] == bindparam(f"seen_{name}") for name in guards))
        )

    def update_values(self, row: Row) -> dict[str, object]:
        return {(f"key_{name}" if name in self.key else name): getattr(row, name) for name in self.names}

    def key_values(self, row: Row) -> dict[str, object]:
        return {name: getattr(row, name) for name in self.key}


def counted(statement: Insert) -> Insert:
    """The statement with its row count kept; without this, drivers differ in whether an INSERT has one."""
    return statement.execution_options(preserve_rowcount=True)


def insert_new(table: Table) -> Mapping[str, Insert]:
    """By dialect: INSERT that does nothing (row count 0) if any unique value is there already."""
    return {name: counted(insert(table).on_conflict_do_nothing()) for name, insert in INSERT.items()}


def insert_or_replace(table: Table) -> Mapping[str, Insert]:
    """By dialect: INSERT that overwrites the row of the same primary key."""
    key = [column.name for column in table.primary_key]
    statements = {name: insert(table) for name, insert in INSERT.items()}
    return {
        name: statement.on_conflict_do_update(
            index_elements=key,
            set_={column.name: statement.excluded[column.name] for column in table.columns if column.name not in key},
        )
        for name, statement in statements.items()
    }


RUNS: Final = RowTable(Run, tables.RUNS)
RUN_MEMBERS: Final = RowTable(RunMember, tables.RUN_MEMBERS)
ROUNDS: Final = RowTable(Round, tables.ROUNDS)
PARTICIPATIONS: Final = RowTable(Participation, tables.PARTICIPATIONS)
UPLOADS: Final = RowTable(Upload, tables.UPLOADS)
KEY_EPOCHS: Final = RowTable(KeyEpoch, tables.KEY_EPOCHS)
PROTOCOL_MESSAGES: Final = RowTable(ProtocolMessage, tables.PROTOCOL_MESSAGES)
SHARE_ENVELOPES: Final = RowTable(ShareEnvelope, tables.SHARE_ENVELOPES)
ADAPTERS: Final = RowTable(Adapter, tables.ADAPTERS)
PARTICIPANTS: Final = RowTable(Participant, tables.PARTICIPANTS)
CERTIFICATES: Final = RowTable(Certificate, tables.CERTIFICATES)
JOIN_TOKENS: Final = RowTable(JoinToken, tables.JOIN_TOKENS)
WEB_TOKENS: Final = RowTable(WebToken, tables.WEB_TOKENS)
AUDIT_EVENTS: Final = RowTable(AuditEvent, tables.AUDIT_EVENTS)
