"""Who may call what, and who no longer may.

The table is the whole rule: a method that is not in it has no callers. Whether a participant belongs to a run or a
round is decided where that run or round is known. Knows nothing of protobuf.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from common.clock import Clock
from common.errors import CertificateRevoked, NotFound, NotInCohort
from common.identifiers import Role
from common.rpc.identity import Caller
from common.rpc.interceptors import Rules
from coordinator.introductions import check_member, is_enrolled_here
from coordinator.rounds.model import Participant, ParticipantState
from coordinator.store.interface import Reader, Store

ANYONE: Final = frozenset(Role)
ANONYMOUS: Final = frozenset({Role.ANONYMOUS})
PARTICIPANTS: Final = frozenset({Role.PARTICIPANT})
READERS: Final = frozenset({Role.VIEWER, Role.OPERATOR, Role.SECURITY_OFFICER})
# Who belongs to the federation is decided by both; what it trains is the operator's alone, so that a security officer's
# certificate cannot start a run.
MEMBERSHIP: Final = frozenset({Role.OPERATOR, Role.SECURITY_OFFICER})
OPERATORS: Final = frozenset({Role.OPERATOR})

RULES: Final[Rules] = {
    # The only call without a certificate. Who has one already renews it; a join token is for who has none.
    "accord.v1.EnrollmentService/Enroll": ANONYMOUS,
    "accord.v1.EnrollmentService/RenewCertificate": PARTICIPANTS,
    "accord.v1.RoundService/GetAssignment": PARTICIPANTS,
    "accord.v1.RoundService/GetCharter": PARTICIPANTS,
    "accord.v1.RoundService/GetPlan": PARTICIPANTS,
    "accord.v1.RoundService/JoinRun": PARTICIPANTS,
    "accord.v1.RoundService/DeclineRun": PARTICIPANTS,
    "accord.v1.RoundService/ReportProgress": PARTICIPANTS,
    "accord.v1.RoundService/ReportPrepared": PARTICIPANTS,
    "accord.v1.RoundService/ReportFailure": PARTICIPANTS,
    "accord.v1.AdapterService/GetAdapter": PARTICIPANTS,
    "accord.v1.AdapterService/DownloadAdapter": PARTICIPANTS,
    "accord.v1.SecureAggregationService/AdvertiseKeys": PARTICIPANTS,
    "accord.v1.SecureAggregationService/GetRoster": PARTICIPANTS,
    "accord.v1.SecureAggregationService/DepositShares": PARTICIPANTS,
    "accord.v1.SecureAggregationService/GetShares": PARTICIPANTS,
    "accord.v1.SecureAggregationService/ConfirmShares": PARTICIPANTS,
    "accord.v1.SecureAggregationService/GetUpload": PARTICIPANTS,
    "accord.v1.SecureAggregationService/UploadMaskedUpdate": PARTICIPANTS,
    "accord.v1.SecureAggregationService/GetEvidence": PARTICIPANTS,
    "accord.v1.SecureAggregationService/CommitSurvivors": PARTICIPANTS,
    "accord.v1.SecureAggregationService/RevealShares": PARTICIPANTS,
    "accord.v1.SecureAggregationService/AuditChunks": PARTICIPANTS,
    "accord.v1.AdminService/GetFederation": READERS,
    "accord.v1.AdminService/CreateJoinToken": MEMBERSHIP,
    "accord.v1.AdminService/ListJoinTokens": READERS,
    "accord.v1.AdminService/RevokeJoinToken": MEMBERSHIP,
    "accord.v1.AdminService/ListParticipants": READERS,
    "accord.v1.AdminService/GetParticipant": READERS,
    "accord.v1.AdminService/RevokeParticipant": MEMBERSHIP,
    "accord.v1.AdminService/DraftCharter": MEMBERSHIP,
    "accord.v1.AdminService/PublishCharter": MEMBERSHIP,
    "accord.v1.AdminService/GetPublishedCharter": READERS,
    "accord.v1.AdminService/CreateRun": OPERATORS,
    "accord.v1.AdminService/GetRun": READERS,
    "accord.v1.AdminService/ListRuns": READERS,
    "accord.v1.AdminService/StartRun": OPERATORS,
    "accord.v1.AdminService/PauseRun": OPERATORS,
    "accord.v1.AdminService/ResumeRun": OPERATORS,
    "accord.v1.AdminService/CancelRun": OPERATORS,
    "accord.v1.AdminService/RollBackRun": OPERATORS,
    "accord.v1.AdminService/GetRound": READERS,
    "accord.v1.AdminService/ExplainRun": READERS,
    "accord.v1.AdminService/ListRounds": READERS,
    "accord.v1.AdminService/ListAdapters": READERS,
    "accord.v1.AdminService/ExportAdapter": READERS,
    "accord.v1.AdminService/ImportAdapter": OPERATORS,
    "accord.v1.AdminService/ListAuditEvents": READERS,
    "accord.v1.AdminService/VerifyAuditLog": READERS,
    "accord.v1.AdminService/CreateWebToken": MEMBERSHIP,
    "accord.v1.AdminService/ListWebTokens": READERS,
    "accord.v1.AdminService/RevokeWebToken": MEMBERSHIP,
    # Whether a server is up is no secret; what it can do is shown on the admin listener, to operators.
    "grpc.health.v1.Health/Check": ANYONE,
    "grpc.health.v1.Health/Watch": ANYONE,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": READERS,
}

# Admin calls that change nothing, so that no transaction of theirs has a line in the audit log. A draft is written
# nowhere; an export is told, as a model leaves.
READING: Final = frozenset(
    {
        "accord.v1.AdminService/DraftCharter",
        *(name for name, roles in RULES.items() if name.startswith("accord.v1.AdminService/") and roles == READERS),
    }
    - {"accord.v1.AdminService/ExportAdapter"}
)


class StoredRevocations:
    """Asks the store about participants, and a list of serial numbers about everybody.

    Asked with every call, so a revocation holds from the next call on, whichever coordinator took it.
    """

    def __init__(
        self, store: Store, clock: Clock, *, revoked_serials: Callable[[], frozenset[str]] = frozenset
    ) -> None:
        self._store = store
        self._clock = clock
        self._revoked_serials = revoked_serials

    async def check(self, caller: Caller) -> None:
        """Raises CertificateRevoked; StorageFailed if nobody can say."""
        await asyncio.to_thread(self._check, caller)

    def _check(self, caller: Caller) -> None:
        if caller.serial in self._revoked_serials():
            raise CertificateRevoked(f"the certificate {caller.serial} of {caller.actor} was revoked")
        if caller.role is not Role.PARTICIPANT:
            return
        with self._store.read() as reader:
            try:
                known = reader.participant(caller.id)
            except NotFound:
                return  # its certificate comes from a partner's CA; the charter says whether it takes part
            if known.state is ParticipantState.REVOKED:
                why = f": {known.revoke_reason}" if known.revoke_reason else ""
                raise CertificateRevoked(f"{caller.actor} was revoked{why}. Ask the federation's operator")
            if known.identity_key_sha256 != caller.spki_sha256 and not self._has_other_key(reader, known, caller):
                # Enrolled anew with another key, or a second CA that is trusted here signs names that are not its own.
                raise CertificateRevoked(
                    f"{caller.actor} is enrolled with another key than this certificate's; use the newer identity or "
                    "enrol again"
                )
            if reader.is_revoked(participant=caller.id, serial=caller.serial):
                raise CertificateRevoked(f"the certificate {caller.serial} of {caller.actor} was revoked")

    def _has_other_key(self, reader: Reader, known: Participant, caller: Caller) -> bool:
        """Whether the member's own PKI has given it another key, as its charter allows."""
        if is_enrolled_here(reader, known):
            return False
        try:
            check_member(reader, caller, at=self._clock.now())
        except NotInCohort:
            return False
        return True
