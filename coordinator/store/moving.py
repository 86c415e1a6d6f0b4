"""Moves a federation's rows from one database to another: all of them or none, and the source stays as it is.

Everything happens in one transaction of the target, its schema included, while a write transaction of the source keeps
everybody else from writing there. Before the commit each table is read back and compared, and the audit log verified.
Blobs and keys stay where they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Table, func, insert, select

from common.errors import AlreadyExists, ConfigInvalid, StorageFailed
from coordinator.store import audit
from coordinator.store.audit import AuditHead
from coordinator.store.database import Database, storage_errors
from coordinator.store.engine import is_sqlite, open_database
from coordinator.store.reader import SqlReader
from coordinator.store.schema import check_database, upgrade
from coordinator.store.tables import METADATA

# Rows of up to a few hundred kilobytes that are in memory at once.
_ROWS_AT_ONCE: Final = 100

Opened = tuple[Database, Connection]


@dataclass(frozen=True, slots=True)
class MovedTable:
    """sha256: over all rows by primary key, hex; the same before and after."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved. place: where to, without a password."""

    place: str
    revision: str
    tables: tuple[MovedTable, ...]
    audit_head: AuditHead


def move(source_url: str, target_url: str, *, progress: Callable[[MovedTable], None] = lambda _: None) -> Moved:
    """Copy every row of a SQLite database into an empty PostgreSQL database.

    Raises ConfigInvalid for other kinds of databases, AlreadyExists if the target has rows, StorageFailed if either
    cannot be used, if the source's schema is not this version's, or if what arrived is not what was sent.
    """
    if not is_sqlite(source_url):
        raise ConfigInvalid(
            "the federation is not on SQLite: databases of a server are moved with its own tools (pg_dump)"
        )
    if is_sqlite(target_url):
        raise ConfigInvalid("--to names another SQLite file: such a database is moved by copying a backup of it")
    source, target = open_database(source_url), open_database(target_url)
    try:
        check_database(source)
        with source.write() as old, target.write() as new:
            _require_empty(new, target)
            revision = upgrade(new, target)
            tables = tuple(_moved(table, (source, old), (target, new), progress) for table in METADATA.sorted_tables)
            head = _verified(new)
        return Moved(target.place, revision, tables, head)
    finally:
        source.close()
        target.close()


def _require_empty(new: Connection, target: Database) -> None:
    there = new.dialect.get_table_names(new)
    for table in METADATA.sorted_tables:
        if table.name in there and (rows := _count(new, table)):
            raise AlreadyExists(f"{target.place} has rows already ({rows} in {table.name}): name a new, empty database")


def _moved(table: Table, source: Opened, target: Opened, progress: Callable[[MovedTable], None]) -> MovedTable:
    database, new = target
    into, names = insert(table), table.columns.keys()
    sent, arrived = hashlib.sha256(), hashlib.sha256()
    rows = 0
    for batch in _batches(source, table):
        new.execute(into, [dict(zip(names, row, strict=True)) for row in batch])
        _update(sent, batch)
        rows += len(batch)
    for batch in _batches(target, table):
        _update(arrived, batch)
    if _count(new, table) != rows or arrived.digest() != sent.digest():
        raise StorageFailed(f"{database.place}: what arrived of {table.name} is not what was sent; nothing was kept")
    moved = MovedTable(table.name, rows, sent.hexdigest())
    progress(moved)
    return moved


def _batches(opened: Opened, table: Table) -> Iterator[list[tuple[object, ...]]]:
    """All rows by primary key. Values are as the code sees them, so that they compare between databases."""
    database, connection = opened
    statement = select(table).order_by(*table.primary_key)
    with (
        storage_errors(database.place, database.translate),
        connection.execute(statement, execution_options={"yield_per": _ROWS_AT_ONCE}) as found,
    ):
        for batch in found.partitions():
            yield [tuple(row) for row in batch]


def _update(digest: hashlib._Hash, batch: list[tuple[object, ...]]) -> None:
    for row in batch:
        text = repr(row).encode()  # of text, bytes, numbers, times and enums: what differs, reads differently
        digest.update(len(text).to_bytes(8, "big") + text)


def _count(connection: Connection, table: Table) -> int:
    rows: int = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return rows


def _verified(new: Connection) -> AuditHead:
    reader = SqlReader(new)
    head = reader.audit_head()
    verdict = audit.verify(reader.audit_chain(), head=head)
    if not verdict.intact:
        raise StorageFailed(
            f"the audit log is broken at event {verdict.first_broken_sequence}, and was so before; nothing was moved. "
            "See `accord-coordinator audit verify`, and restore a backup"
        )
    return head
