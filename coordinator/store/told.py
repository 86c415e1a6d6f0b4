"""A store that logs each line of its audit log once it is durable: whoever reads the log sees every fact once, and none
that was rolled back. Changes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Final, cast

from common.errors import StorageFailed, Unavailable
from common.log import get_logger
from coordinator.rounds.model import AuditEvent
from coordinator.store.interface import Reader, Store, Writer

# Receipts and digests by the hundred belong in the audit log alone.
_MOST_TEXT: Final = 300
_MOST_NAMES: Final = 64

log: Final = get_logger(__name__)


class ToldStore:
    """A `Store`."""

    def __init__(self, store: Store, *, on_lost: Callable[[], None]) -> None:
        """on_lost: told of every transaction that should have written to the audit log and did not become durable."""
        self._store = store
        self._on_lost = on_lost

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with self._store.read() as reader:
            yield reader

    @contextmanager
    def write(self) -> Iterator[Writer]:
        listening: _Listening | None = None
        try:
            with self._store.write() as writer:
                listening = _Listening(writer)
                yield cast("Writer", listening)
        except (StorageFailed, Unavailable):
            if listening is not None and listening.has_tried:
                self._on_lost()
            raise
        for event in listening.events:
            log.info(event.action, **fields_of(event))

    def acquire_lease(self, name: str, *, holder: str, now: datetime, until: datetime) -> bool:
        return self._store.acquire_lease(name, holder=holder, now=now, until=until)

    def release_lease(self, name: str, *, holder: str) -> None:
        self._store.release_lease(name, holder=holder)

    def ping(self) -> None:
        self._store.ping()

    def close(self) -> None:
        self._store.close()


class _Listening:
    """A writer, and what it has appended to the audit log."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.events: list[AuditEvent] = []
        self.has_tried = False

    def append_audit(self, *, time: datetime, actor: str, action: str, subject: str, details: str) -> AuditEvent:
        self.has_tried = True
        event = self._writer.append_audit(time=time, actor=actor, action=action, subject=subject, details=details)
        self.events.append(event)
        return event

    def __getattr__(self, name: str) -> object:
        return getattr(self._writer, name)


def fields_of(event: AuditEvent) -> Mapping[str, object]:
    """The fields of a log line: run and round where the line is about one, and what is short among its details."""
    found: dict[str, object] = {"actor": event.actor, "subject": event.subject, "audit": event.sequence}
    parts = event.subject.split("/")
    if parts[0] == "runs" and len(parts) > 1:
        found["run"] = parts[1]
    if len(parts) == 4 and parts[2] == "rounds" and parts[3].isdigit():
        found["round"] = int(parts[3])
    details = json.loads(event.details)
    if isinstance(details, dict):
        for name, value in details.items():
            if _is_short(value):
                # "event" and "level" are the log's own names.
                found[f"its_{name}" if name in ("event", "level", "logger", "time", *found) else name] = value
    return found


def _is_short(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= _MOST_NAMES and all(_is_short(one) for one in value)
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    return value is None or isinstance(value, (bool, int, float))
