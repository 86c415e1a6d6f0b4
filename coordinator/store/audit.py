"""The audit log's hash chain: what is hashed, and how a log is checked.

Pure; knows nothing of where the events lie. Whoever can write to the database can also compute a whole new chain, so
an operator who wants to detect that notes the chain digest somewhere else from time to time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC
from typing import Final

from common.errors import InvalidArgument
from coordinator.rounds.model import AuditEvent

GENESIS: Final = hashlib.sha256(b"accord audit log 1").hexdigest()


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Sequence and chain digest of the last event; 0 and GENESIS while there is none."""

    sequence: int = 0
    chain_digest: str = GENESIS


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What a check of the chain found.

    `first_broken_sequence` is the lowest sequence number whose event is missing, changed or out of place, 0 if none.
    `chain_digest` and `sequence` are those of the last event before it.
    """

    events: int
    first_broken_sequence: int
    chain_digest: str
    sequence: int

    @property
    def intact(self) -> bool:
        return self.first_broken_sequence == 0


def canonical_line(event: AuditEvent) -> bytes:
    """The line that is hashed: all fields but the digest as one JSON object, keys sorted, no spaces, ASCII.

    The time is UTC with six digits and a Z. `details` stays the text that it is, so its bytes count.
    """
    return json.dumps(
        {
            "action": event.action,
            "actor": event.actor,
            "details": event.details,
            "sequence": event.sequence,
            "subject": event.subject,
            "time": event.time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode("ascii")


def chain_digest(previous: str, event: AuditEvent) -> str:
    """SHA-256(previous chain digest as 32 bytes || canonical line), hex. `previous` is GENESIS for the first event."""
    return hashlib.sha256(bytes.fromhex(previous) + canonical_line(event)).hexdigest()


def expected_head(sequence: int, digest: str) -> AuditHead | None:
    """A head that somebody has noted, as a request or a command line says it; None for 0 and "".

    Raises InvalidArgument unless it is both a number and 64 hex digits.
    """
    if not sequence and not digest:
        return None
    if sequence < 1 or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise InvalidArgument("the expected head is the number of an event and its chain digest, 64 hex digits")
    return AuditHead(sequence, digest)


def verify(
    events: Iterable[AuditEvent], *, head: AuditHead | None = None, expected: AuditHead | None = None
) -> AuditVerdict:
    """Recompute the chain over all events, oldest first.

    With `head` (as stored beside the log) a log whose last events were taken away is found too; it is intact only if it
    ends exactly there. `expected` was noted elsewhere, earlier: the log is intact only if it holds that event with that
    digest, whatever came after it. That also finds a log that was written anew from some event on, and its own head
    with it; how far before `expected` that began, nobody can tell.
    """
    count, last, broken = 0, AuditHead(), 0
    for event in events:
        count += 1
        if broken:
            continue
        digest = chain_digest(last.chain_digest, event)
        is_another = expected is not None and event.sequence == expected.sequence and digest != expected.chain_digest
        if event.sequence != last.sequence + 1 or event.chain_digest != digest or is_another:
            broken = last.sequence + 1
        else:
            last = AuditHead(event.sequence, digest)
    if not broken and head is not None and head != last:
        same_length = head.sequence == last.sequence
        broken = max(1, last.sequence) if same_length else min(head.sequence, last.sequence) + 1
    if not broken and expected is not None and last.sequence < expected.sequence:
        broken = last.sequence + 1
    return AuditVerdict(
        events=count, first_broken_sequence=broken, chain_digest=last.chain_digest, sequence=last.sequence
    )
