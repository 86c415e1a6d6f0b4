"""Drafts charters from those who have enrolled, and checks one against them before it is published.

Pure; the charter's own form and rules lie in `common.charter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.charter import CHARTER_FORM, LEAST_COHORT_FLOOR, USUAL_BOUNDS, Charter, CharterMember, canonical_authority
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
) -> Charter:
    """A charter of enrolled participants with the usual bounds.

    ca_certificates: PEM of the CAs that certify them, one each; two while the coordinator's CA is being replaced, so
    that certificates of both count.

    Raises CharterInvalid that lists every mistake, such as fewer than three members.
    """
    revoked = sorted(member.name for member in members if member.state is ParticipantState.REVOKED)
    if revoked:
        raise CharterInvalid(f"{', '.join(revoked)}: revoked, so cannot be a member; enrol them anew or leave them out")
    authorities = tuple(canonical_authority(pem) for pem in ca_certificates)
    charter = Charter(
        federation=federation,
        members=tuple(
            CharterMember(
                id=member.name,
                uri=ParticipantIdentity(federation, ParticipantId(member.name)).uri,
                ca_certificates=authorities,
                identity_key_sha256=member.identity_key_sha256,
            )
            for member in sorted(members, key=lambda member: member.name)
        ),
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
