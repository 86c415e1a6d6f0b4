"""Drafts charters from those who have enrolled, and checks one against them before it is published.

Pure; the charter's own form and rules lie in `common.charter`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from common.charter import (
    CHARTER_FORM,
    LEAST_COHORT_FLOOR,
    USUAL_BOUNDS,
    Charter,
    CharterMember,
    canonical_authority,
    separate_authorities,
)
from common.errors import CharterInvalid, ConfigInvalid
from common.identifiers import FederationId, ParticipantId, ParticipantIdentity
from coordinator.rounds.model import Participant, ParticipantState


@dataclass(frozen=True, slots=True)
class CharterTerms:
    """What an operator may choose in a draft; the bounds are edited in the text itself.

    colluders None: a third, (n-1)//3 of all members, however many of them join a run.
    """

    least_cohort: int = LEAST_COHORT_FLOOR
    colluders: int | None = None
    base_model_digests: tuple[str, ...] = ()


def draft_charter(
    members: Sequence[Participant],
    terms: CharterTerms,
    *,
    federation: FederationId,
    ca_certificates: Sequence[str],
    coordinator_public_key: str,
    outside: Mapping[ParticipantId, str] = MappingProxyType({}),
) -> Charter:
    """A charter of enrolled participants with the usual bounds.

    ca_certificates: PEM of the CAs that certify them, one each; two while the coordinator's CA is being replaced, so
    that certificates of both count; none where the coordinator has no CA of its own. outside: PEM of the CAs of those
    whose certificates come from their own organisation's PKI. Their keys are not pinned, as that PKI may replace them.

    Raises CharterInvalid that lists every mistake, such as fewer than three members.
    """
    if not ca_certificates and (members or not outside):
        unknown = f" ({', '.join(sorted(member.name for member in members))})" if members else ""
        raise CharterInvalid(
            f"this coordinator has no CA of its own, so the charter must name each member's{unknown}: charter draft "
            "--member-ca NAME=FILE, or ca_certificates"
        )
    revoked = sorted(member.name for member in members if member.state is ParticipantState.REVOKED)
    if revoked:
        raise CharterInvalid(f"{', '.join(revoked)}: revoked, so cannot be a member; enrol them anew or leave them out")

    def member(name: str, authorities: Sequence[str], key_sha256: str | None) -> CharterMember:
        return CharterMember(
            id=name,
            uri=ParticipantIdentity(federation, ParticipantId(name)).uri,
            ca_certificates=tuple(authorities),
            identity_key_sha256=key_sha256,
        )

    own = [canonical_authority(pem) for pem in ca_certificates]
    drafted = [member(one.name, own, one.identity_key_sha256) for one in members]
    drafted += [
        member(name, separate_authorities(pem, what=f"the CA of {name}"), None) for name, pem in outside.items()
    ]
    charter = Charter(
        federation=federation,
        members=tuple(sorted(drafted, key=lambda member: member.id)),
        coordinator_public_key=coordinator_public_key,
        least_cohort=terms.least_cohort,
        colluders=terms.colluders,
        base_model_digests=terms.base_model_digests,
        bounds=USUAL_BOUNDS,
        form=CHARTER_FORM,
    )
    charter.check()
    return charter


def require_signing_key(charter: Charter, coordinator_public_key: str) -> None:
    """Raises ConfigInvalid if members of this charter would refuse what this coordinator signs.

    So a replica with keys of its own, or a database that was restored without them, does not begin to serve.
    """
    if charter.coordinator_public_key != coordinator_public_key:
        raise ConfigInvalid(
            f"the charter in force names the signing key {charter.coordinator_public_key}, and this coordinator has "
            f"{coordinator_public_key}: give every replica the same signing-key.pem (keys.folder), or restore it from "
            "the backup"
        )


def check_publishable(
    charter: Charter,
    enrolled: Sequence[Participant],
    *,
    federation: FederationId,
    coordinator_public_key: str,
) -> None:
    """Raises CharterInvalid if runs under this charter could not work here; lists every reason.

    A member that has not enrolled is no mistake: it may do so later, or its certificate comes from a CA of its own.
    """
    mistakes: list[str] = []
    if charter.federation != federation:
        mistakes.append(f"it is of federation {charter.federation}, and this is {federation}")
    if charter.coordinator_public_key != coordinator_public_key:
        mistakes.append(f"coordinator_public_key is not this coordinator's, which is {coordinator_public_key}")
    known = {participant.name: participant for participant in enrolled}
    for member in charter.members:
        participant = known.get(member.id)
        if participant is None:
            continue
        if participant.state is ParticipantState.REVOKED:
            mistakes.append(f"{member.id} is revoked")
        elif member.identity_key_sha256 not in (None, participant.identity_key_sha256):
            mistakes.append(f"{member.id} is enrolled with another key ({participant.identity_key_sha256})")
    if mistakes:
        raise CharterInvalid("the charter cannot be published: " + "; ".join(mistakes))
