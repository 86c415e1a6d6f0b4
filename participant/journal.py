"""What this site has done, on disk before anybody hears of it: the reason why a kill at any line is harmless.

One SQLite file; a row is durable when a method returns. Holds the masking protocol's states as opaque bytes, so it
knows nothing of masks, and is readable for its owner alone.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from common.errors import StorageFailed
from common.log import get_logger
from participant.fence import Fence

log = get_logger(__name__)

_WENT_BACK: Final = (
    "the journal is older than its counter, or a copy: it comes from a backup. All masking keys in it were erased, "
    "since with them a second update could be masked; this site is back with the next key epoch"
)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fence (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    count INTEGER NOT NULL,
    file INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY,
    plan BLOB NOT NULL,
    plan_digest TEXT NOT NULL,
    charter BLOB NOT NULL,
    standing TEXT NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS epochs (
    run TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    phase TEXT NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (run, epoch)
) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    phase TEXT NOT NULL,
    adapter TEXT NOT NULL,
    model_hash BLOB NOT NULL,
    has_opened INTEGER NOT NULL,
    state BLOB NOT NULL,
    chunk_digests BLOB NOT NULL,
    uploaded_bytes INTEGER NOT NULL,
    contribution TEXT NOT NULL,
    clipping TEXT NOT NULL DEFAULT '',
    scores TEXT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    started_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (run, round)
) STRICT;
CREATE TABLE IF NOT EXISTS records (
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    context BLOB NOT NULL,
    chunk_digests BLOB NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (run, round)
) STRICT;
"""
# Records of so many rounds of a run are kept: more than a coordinator keeps the uploads of.
KEPT_RECORDS: Final = 16


class RunStanding(StrEnum):
    JOINED = "joined"
    DECLINED = "declined"
    OVER = "over"


class EpochPhase(StrEnum):
    """Which state of the masking protocol's key set-up the bytes are."""

    ADVERTISING = "advertising"
    DEALT = "dealt"
    KEYS = "keys"


class RoundPhase(StrEnum):
    """How far this site is in a round; from MASKING to REVEALED, `state` holds the masking protocol's state."""

    PREPARING = "preparing"
    PREPARED = "prepared"
    MASKING = "masking"
    MASKED = "masked"
    BOUND = "bound"
    REVEALED = "revealed"
    FAILED = "failed"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run as this site knows it. `charter` is the one that the plan was checked against."""

    run: str
    plan: bytes = field(repr=False)
    plan_digest: str
    charter: bytes = field(repr=False)
    standing: RunStanding
    updated_at: datetime
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class EpochEntry:
    """A key epoch's state at this site."""

    run: str
    epoch: int
    phase: EpochPhase
    state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoundEntry:
    """A round at this site.

    contribution: JSON of what the update carries with it into the sum. scores: JSON of this site's own figures by
    domain. clipping: JSON of what the plan's bounds took from the update. None leaves the site in the clear.
    """

    run: str
    round: int
    kind: str
    phase: RoundPhase
    adapter: str
    model_hash: bytes
    started_at: datetime
    updated_at: datetime
    has_opened: bool = False
    state: bytes = field(default=b"", repr=False)
    chunk_digests: bytes = field(default=b"", repr=False)
    uploaded_bytes: int = 0
    contribution: str = field(default="", repr=False)
    clipping: str = ""
    scores: str = field(default="", repr=False)
    outcome: str = ""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What stays of a round that is over, for an audit of it. None of it is secret.

    context: the masking protocol's, as it was at this site. chunk_digests: of this site's own masked update, empty if
    it made none. result: digest of the adapter that the round published, as this site was told; empty if of none.
    """

    run: str
    round: int
    context: bytes = field(repr=False)
    chunk_digests: bytes = field(repr=False)
    result: str


class Journal:
    """Safe for use by several threads of one process; a second process is refused by the daemon's lock, not here."""

    def __init__(self, path: Path, *, fence: Fence | None = None) -> None:
        """fence: for the daemon, which writes; a journal that went back in time loses its keys here.

        Raises StorageFailed if the file cannot be opened or is no journal.
        """
        self._lock = threading.Lock()
        self._fence = fence
        self._owes_erasure = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            # Erased keys must not linger in free pages.
            self._database.execute("PRAGMA secure_delete=ON")
            self._database.executescript(_SCHEMA)
            self._add_columns()
            if fence is not None:
                self._keep_in_step(fence)
        except (OSError, sqlite3.Error) as error:
            raise StorageFailed(f"cannot open the journal {path}: {error}") from error

    def _add_columns(self) -> None:
        """A journal of an earlier version gets the columns that it has not."""
        if "clipping" not in {name for _, name, *_ in self._database.execute("PRAGMA table_info(rounds)")}:
            self._database.execute("ALTER TABLE rounds ADD COLUMN clipping TEXT NOT NULL DEFAULT ''")

    def _keep_in_step(self, fence: Fence) -> None:
        """Compare journal and counter; erase every key and mask of a journal that is not the one that was counted."""
        mark = fence.read()
        row = self._database.execute("SELECT count, file FROM fence").fetchone()
        went_back = row is not None and (mark is None or mark.file != row[1] or mark.count > row[0])
        now = mark or fence.write(0)
        with self._transaction() as database:
            # Also for what a process that was killed has left in the write-ahead log.
            self._owes_erasure = True
            if went_back:
                database.execute("DELETE FROM epochs")
                database.execute(
                    "UPDATE rounds SET state = x'', phase = ?, reason = ?, message = ? WHERE phase <> ?",
                    (RoundPhase.FAILED.value, StorageFailed.reason, _WENT_BACK, RoundPhase.OVER.value),
                )
            database.execute(
                "INSERT OR REPLACE INTO fence (only, count, file) VALUES (1, ?, ?)",
                (max(now.count, row[0] if row else 0), now.file),
            )
        if went_back:
            log.error("journal_went_back", message=_WENT_BACK)

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Durable when the block has ended.

        A block that changes keys or masks sets `_owes_erasure`: it is counted, and what it replaced is erased from the
        log. That takes four syncs of the disk more than the others need, and most of a round's need none of it.
        """
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                counted = self._count() if self._owes_erasure else None
                self._database.execute("COMMIT")
                if self._fence is not None and counted is not None:
                    self._fence.write(counted)
                if self._owes_erasure:
                    self._owes_erasure = not self._empty_log()
            except (OSError, sqlite3.Error) as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise StorageFailed(f"cannot write the journal: {error}; is the disk full?") from error

    def _count(self) -> int | None:
        self._database.execute("UPDATE fence SET count = count + 1")
        counted = self._database.execute("SELECT count FROM fence").fetchone()
        return None if counted is None else int(counted[0])

    def _empty_log(self) -> bool:
        """Keys must not linger in the write-ahead log either, where what was there before would stay until other pages
        cover it. False where a reader is in the way: it is the next transaction's to do."""
        is_busy, *_ = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._database.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise StorageFailed(f"cannot read the journal: {error}") from error

    # --- runs -----------------------------------------------------------------------------------------------------

    def run(self, run: str) -> RunEntry | None:
        return next(iter(self._runs("WHERE run = ?", run)), None)

    def runs(self) -> tuple[RunEntry, ...]:
        """By the time of their last change, newest first."""
        return self._runs("ORDER BY updated_at DESC")

    def _runs(self, where: str, *values: object) -> tuple[RunEntry, ...]:
        rows = self._rows(
            "SELECT run, plan, plan_digest, charter, standing, updated_at, reason, message FROM runs " + where,  # noqa: S608  constants below
            *values,
        )
        return tuple(
            RunEntry(
                run=str(run),
                plan=_bytes(plan),
                plan_digest=str(plan_digest),
                charter=_bytes(charter),
                standing=RunStanding(str(standing)),
                updated_at=_time(updated_at),
                reason=str(reason),
                message=str(message),
            )
            for run, plan, plan_digest, charter, standing, updated_at, reason, message in rows
        )

    def put_run(self, entry: RunEntry) -> None:
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO runs (run, plan, plan_digest, charter, standing, reason, message, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.run,
                    entry.plan,
                    entry.plan_digest,
                    entry.charter,
                    entry.standing.value,
                    entry.reason,
                    entry.message,
                    _text(entry.updated_at),
                ),
            )

    # --- key epochs -----------------------------------------------------------------------------------------------

    def epoch(self, run: str, epoch: int) -> EpochEntry | None:
        rows = self._rows("SELECT phase, state FROM epochs WHERE run = ? AND epoch = ?", run, epoch)
        return next((EpochEntry(run, epoch, EpochPhase(str(phase)), _bytes(state)) for phase, state in rows), None)

    def put_epoch(self, entry: EpochEntry) -> None:
        """Also forgets the keys of the run's earlier epochs: the coordinator never goes back to one."""
        with self._transaction() as database:
            self._owes_erasure = True
            _put_epoch(database, entry)
            database.execute("DELETE FROM epochs WHERE run = ? AND epoch < ?", (entry.run, entry.epoch))

    def forget_keys(self, run: str) -> None:
        """Erase all keys and masks of a run that is over."""
        with self._transaction() as database:
            self._owes_erasure = True
            database.execute("DELETE FROM epochs WHERE run = ?", (run,))
            database.execute("UPDATE rounds SET state = x'' WHERE run = ?", (run,))

    # --- rounds ---------------------------------------------------------------------------------------------------

    def round(self, run: str, round_: int) -> RoundEntry | None:
        return next(iter(self._rounds("WHERE run = ? AND round = ?", run, round_)), None)

    def rounds(self, run: str) -> tuple[RoundEntry, ...]:
        """Newest first."""
        return self._rounds("WHERE run = ? ORDER BY round DESC", run)

    def open_rounds(self, run: str, *, up_to: int) -> tuple[RoundEntry, ...]:
        """Rounds that this site has not been told the end of, or has missed it; oldest first."""
        return self._rounds(
            "WHERE run = ? AND round <= ? AND phase <> ? ORDER BY round", run, up_to, RoundPhase.OVER.value
        )

    def adapters_in_use(self) -> frozenset[str]:
        """Digests of the adapters that rounds of any run, not yet over here, have started from."""
        rows = self._rows("SELECT DISTINCT adapter FROM rounds WHERE phase <> ?", RoundPhase.OVER.value)
        return frozenset(str(adapter) for (adapter,) in rows)

    def rounds_since(self, time: datetime) -> tuple[RoundEntry, ...]:
        """Rounds of all runs that began at this site since then: what a policy counts."""
        return self._rounds("WHERE started_at >= ? ORDER BY started_at", _text(time))

    def _rounds(self, where: str, *values: object) -> tuple[RoundEntry, ...]:
        rows = self._rows(
            "SELECT run, round, kind, phase, adapter, model_hash, started_at, updated_at, state, chunk_digests,"  # noqa: S608
            " uploaded_bytes, scores, outcome, reason, message, has_opened, contribution,"
            " clipping FROM rounds " + where,
            *values,
        )
        return tuple(
            RoundEntry(
                run=str(row[0]),
                round=int(str(row[1])),
                kind=str(row[2]),
                phase=RoundPhase(str(row[3])),
                adapter=str(row[4]),
                model_hash=_bytes(row[5]),
                started_at=_time(row[6]),
                updated_at=_time(row[7]),
                state=_bytes(row[8]),
                chunk_digests=_bytes(row[9]),
                uploaded_bytes=int(str(row[10])),
                scores=str(row[11]),
                outcome=str(row[12]),
                reason=str(row[13]),
                message=str(row[14]),
                has_opened=bool(row[15]),
                contribution=str(row[16]),
                clipping=str(row[17]),
            )
            for row in rows
        )

    def put_round(self, entry: RoundEntry, *, keys: EpochEntry | None = None) -> None:
        """Write a round and, in the same transaction, the key epoch that its masks were taken out of."""
        with self._transaction() as database:
            query = "SELECT state, has_opened FROM rounds WHERE run = ? AND round = ?"
            before = database.execute(query, (entry.run, entry.round)).fetchone() or (b"", 0)
            if keys is not None or before != (entry.state, int(entry.has_opened)):
                self._owes_erasure = True
            if keys is not None:
                _put_epoch(database, keys)
            database.execute(
                "INSERT OR REPLACE INTO rounds (run, round, kind, phase, adapter, model_hash, has_opened, state,"
                " chunk_digests, uploaded_bytes, contribution, clipping, scores, outcome, reason, message, started_at,"
                " updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.run,
                    entry.round,
                    entry.kind,
                    entry.phase.value,
                    entry.adapter,
                    entry.model_hash,
                    int(entry.has_opened),
                    entry.state,
                    entry.chunk_digests,
                    entry.uploaded_bytes,
                    entry.contribution,
                    entry.clipping,
                    entry.scores,
                    entry.outcome,
                    entry.reason,
                    entry.message,
                    _text(entry.started_at),
                    _text(entry.updated_at),
                ),
            )

    def put_record(self, record: RoundRecord) -> None:
        """Also forgets the run's oldest ones."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO records (run, round, context, chunk_digests, result) VALUES (?, ?, ?, ?, ?)",
                (record.run, record.round, record.context, record.chunk_digests, record.result),
            )
            database.execute(
                "DELETE FROM records WHERE run = ? AND round <= ?", (record.run, record.round - KEPT_RECORDS)
            )

    def records(self, run: str) -> tuple[RoundRecord, ...]:
        """Newest first."""
        rows = self._rows(
            "SELECT round, context, chunk_digests, result FROM records WHERE run = ? ORDER BY round DESC", run
        )
        return tuple(
            RoundRecord(run, int(str(round_)), _bytes(context), _bytes(chunk_digests), str(result))
            for round_, context, chunk_digests, result in rows
        )

    def times_opened(self, run: str, model_hash: bytes) -> int:
        """In how many rounds this site has helped to open a sum of updates that were trained from this model."""
        rows = self._rows(
            "SELECT COUNT(*) FROM rounds WHERE run = ? AND model_hash = ? AND has_opened = 1", run, model_hash
        )
        return int(str(rows[0][0]))


def _put_epoch(database: sqlite3.Connection, entry: EpochEntry) -> None:
    database.execute(
        "INSERT OR REPLACE INTO epochs (run, epoch, phase, state) VALUES (?, ?, ?, ?)",
        (entry.run, entry.epoch, entry.phase.value, entry.state),
    )


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise StorageFailed("the journal holds text where bytes should be; restore it from its own backup or re-enrol")
    return value


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def _time(value: object) -> datetime:
    return datetime.fromisoformat(str(value))
