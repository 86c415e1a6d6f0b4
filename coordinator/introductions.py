"""Members whose certificates come from their own organisation's PKI: they never enrol, and are recorded as they call.

Any CA that the listener trusts can put any name into a certificate. So a name is taken, and moved to another key, only
where the CA vouches for it that the charter in force names for this very member.
"""

from __future__ import annotations

from datetime import datetime

from common.clock import Clock
from common.errors import MemberRejected, NotFound, NotInCohort
from common.masking import pinned_members
from common.rpc.identity import Caller
from coordinator import audit_lines
from coordinator.rounds.model import Participant, ParticipantState
from coordinator.standing import parse_charter
from coordinator.store.interface import Reader, Writer


def is_enrolled_here(reader: Reader, known: Participant) -> bool:
    """Whether this coordinator's own CA has issued the participant's newest certificate."""
    try:
        reader.certificate(known.certificate_serial)
    except NotFound:
        return False
    return True


def check_member(reader: Reader, caller: Caller, *, at: datetime) -> None:
    """Raises NotInCohort if the charter does not name the caller, or names other CAs, or another key, for it."""
    charter = parse_charter(reader.charter())
    if caller.id not in charter.member_ids:
        raise NotInCohort(f"the charter does not name {caller.id}; ask the federation's operator")
    try:
        pinned_members(charter, now=at).verify(caller.id, caller.certificate_chain)
    except MemberRejected as error:
        raise NotInCohort(
            f"{error}. The charter says whose certificates count: ask the federation's operator"
        ) from error


def introduce(writer: Writer, caller: Caller, known: Participant | None, *, clock: Clock) -> Participant:
    """Record a member, or the certificate that its PKI has given it since. Raises as `check_member` does."""
    now = clock.now()
    check_member(writer, caller, at=now)
    introduced = Participant(
        name=caller.id,
        state=ParticipantState.ACTIVE,
        enrolled_at=known.enrolled_at if known else now,
        identity_key_sha256=caller.spki_sha256,
        certificate_serial=caller.serial,
        certificate_expires_at=caller.not_after or now,
        last_seen_at=known.last_seen_at if known else None,
        software_version=known.software_version if known else "",
    )
    writer.put_participant(introduced)
    audit_lines.append(
        writer,
        clock,
        actor=caller.actor,
        action="participant_introduced",
        subject=caller.actor,
        identity_key_sha256=caller.spki_sha256,
        serial=caller.serial,
        expires_at=introduced.certificate_expires_at.isoformat(),
    )
    return introduced
