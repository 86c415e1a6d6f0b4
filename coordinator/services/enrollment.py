"""EnrollmentService: a join token for a first certificate, a certificate for its successor.

Enroll is the one call without a client certificate, so it trusts nothing but the token's secret. The name in a
certificate comes from the token, never from the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from accord.v1 import enrollment_pb2, enrollment_pb2_grpc
from common import identifiers
from common.certificates import serial_text, spki_sha256
from common.clock import Clock
from common.errors import AccordError, CertificateRevoked, InvalidArgument, JoinTokenInvalid, NotFound
from common.identifiers import ParticipantId
from common.join_token import secret_sha256
from common.rpc.assignments import timestamp
from common.rpc.handlers import Context
from common.rpc.identity import Caller, current_caller
from coordinator import audit_lines
from coordinator.introductions import is_enrolled_here
from coordinator.pki import PARTICIPANT_LIFE, CertificateAuthority, LeafPublicKey, requested_key
from coordinator.rounds.model import Certificate, JoinToken, Participant, ParticipantState
from coordinator.store.interface import Store, Writer

MOST_SECRET_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class _Refused:
    """A refusal whose audit line must outlive it: raising inside the transaction would roll the line back."""

    error: AccordError


class EnrollmentServicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """Issues and renews participants' certificates.

    authority: gives the CA that issues at the moment. trust_bundle: the PEM that participants verify us by.
    """

    def __init__(
        self,
        *,
        store: Store,
        authority: Callable[[], CertificateAuthority],
        trust_bundle: Callable[[], str],
        clock: Clock,
        life: timedelta = PARTICIPANT_LIFE,
    ) -> None:
        self._store = store
        self._authority = authority
        self._trust_bundle = trust_bundle
        self._clock = clock
        self._life = life

    async def Enroll(self, request: enrollment_pb2.EnrollRequest, context: Context) -> enrollment_pb2.EnrollResponse:
        certificate = await asyncio.to_thread(self._enroll, request.token_secret, request.certificate_request)
        return enrollment_pb2.EnrollResponse(
            participant=identifiers.participant_name(certificate.participant),
            federation=self._authority().federation,
            certificate_chain=certificate.chain,
            trust_bundle=await asyncio.to_thread(self._trust_bundle),
            expire_time=timestamp(certificate.expires_at),
        )

    async def RenewCertificate(
        self, request: enrollment_pb2.RenewCertificateRequest, context: Context
    ) -> enrollment_pb2.RenewCertificateResponse:
        certificate = await asyncio.to_thread(self._renew, current_caller(), request.certificate_request)
        return enrollment_pb2.RenewCertificateResponse(
            certificate_chain=certificate.chain,
            trust_bundle=await asyncio.to_thread(self._trust_bundle),
            expire_time=timestamp(certificate.expires_at),
        )

    # --- enrol ---------------------------------------------------------------------------------------------------

    def _enroll(self, secret: str, request: bytes) -> Certificate:
        if not secret or len(secret) > MOST_SECRET_CHARACTERS:
            raise JoinTokenInvalid("token_secret is missing or malformed")
        key = requested_key(request)
        with self._store.write() as writer:
            outcome = self._exchange(writer, secret, key)
        if isinstance(outcome, _Refused):
            raise outcome.error
        return outcome

    def _exchange(self, writer: Writer, secret: str, key: LeafPublicKey) -> Certificate | _Refused:
        """The certificate for an open token, or for a token that this very key was enrolled with."""
        try:
            token = writer.join_token_by_secret(secret_sha256(secret))
        except NotFound:
            # Nothing is written for guesses: whoever can reach this port could fill the audit log.
            raise JoinTokenInvalid("the join token is not known here; ask the federation's operator for one") from None
        key_sha256, now = spki_sha256(key), self._clock.now()
        problem = _problem(token, now)
        if problem is not None:
            return self._refused(writer, token, JoinTokenInvalid(problem), key_sha256)
        if token.used_certificate is not None:
            earlier = writer.certificate(token.used_certificate)
            if earlier.identity_key_sha256 == key_sha256 and earlier.revoked_at is None:
                return earlier  # the answer was lost on its way, and the same site asks again
            return self._refused(writer, token, JoinTokenInvalid(_USED), key_sha256)
        known = _participant(writer, token.participant)
        if known is not None and known.state is ParticipantState.REVOKED:
            message = f"participants/{token.participant} was revoked; ask the federation's operator"
            return self._refused(writer, token, JoinTokenInvalid(message), key_sha256)
        holder = _holder_of_key(writer, key_sha256)
        if holder is not None and holder != token.participant:
            message = f"this key is enrolled as participants/{holder}; each participant needs its own"
            return self._refused(writer, token, InvalidArgument(message), key_sha256)
        certificate = self._issue(writer, ParticipantId(token.participant), key, known, enrolled_at=now)
        writer.update_join_token(replace(token, used_at=now, used_certificate=certificate.serial))
        self._audit(writer, "participant_enrolled", token.participant, certificate, token=token.name)
        return certificate

    def _refused(self, writer: Writer, token: JoinToken, error: AccordError, key_sha256: str) -> _Refused:
        audit_lines.append(
            writer,
            self._clock,
            actor=identifiers.Role.ANONYMOUS.value,
            action="enrollment_refused",
            subject=identifiers.join_token_name(token.name),
            participant=token.participant,
            reason=error.reason,
            message=error.message,
            identity_key_sha256=key_sha256,
        )
        return _Refused(error)

    # --- renew ---------------------------------------------------------------------------------------------------

    def _renew(self, caller: Caller, request: bytes) -> Certificate:
        participant, key = caller.participant, requested_key(request)
        if spki_sha256(key) != caller.spki_sha256:
            # Whoever has stolen a certificate's use for an hour must not be able to keep it under a key of his own.
            raise InvalidArgument("certificate_request must be made with the key of the present certificate")
        with self._store.write() as writer:
            known = _participant(writer, participant)
            if known is None or not is_enrolled_here(writer, known):
                raise NotFound(
                    f"participants/{participant} was not enrolled with this coordinator's CA; its certificate is "
                    "renewed where it came from"
                )
            if known.state is ParticipantState.REVOKED:
                raise CertificateRevoked(f"participants/{participant} was revoked")
            certificate = self._issue(writer, participant, key, known, enrolled_at=known.enrolled_at)
            self._audit(writer, "certificate_renewed", participant, certificate, replaces=caller.serial)
        return certificate

    # --- both ----------------------------------------------------------------------------------------------------

    def _issue(
        self,
        writer: Writer,
        participant: ParticipantId,
        key: LeafPublicKey,
        known: Participant | None,
        *,
        enrolled_at: datetime,
    ) -> Certificate:
        now = self._clock.now()
        issued = self._authority().issue_participant(key, participant, now=now, life=self._life)
        certificate = Certificate(
            serial=serial_text(issued.certificate),
            participant=participant,
            identity_key_sha256=spki_sha256(key),
            chain=issued.chain_pem,
            issued_at=now,
            expires_at=issued.certificate.not_valid_after_utc,
        )
        row = Participant(
            name=participant,
            state=ParticipantState.ACTIVE,
            enrolled_at=enrolled_at,
            identity_key_sha256=certificate.identity_key_sha256,
            certificate_serial=certificate.serial,
            certificate_expires_at=certificate.expires_at,
            last_seen_at=known.last_seen_at if known else None,
            software_version=known.software_version if known else "",
        )
        writer.put_participant(row)
        writer.add_certificate(certificate)
        return certificate

    def _audit(self, writer: Writer, action: str, participant: str, certificate: Certificate, **details: str) -> None:
        name = identifiers.participant_name(participant)
        audit_lines.append(
            writer,
            self._clock,
            actor=name,
            action=action,
            subject=name,
            serial=certificate.serial,
            expires_at=certificate.expires_at.isoformat(),
            identity_key_sha256=certificate.identity_key_sha256,
            **details,
        )


_USED: Final = (
    "the join token was used before, with another key. If that was not you, tell the federation's operator now; if it "
    "was, go on with the key of then or ask for a new token"
)


def _problem(token: JoinToken, now: datetime) -> str | None:
    """Why a token is not open, for whoever holds its secret; None if it is, or if it was used."""
    if token.revoked_at is not None:
        return "the join token was revoked; ask the federation's operator for a new one"
    if now >= token.expires_at:
        return f"the join token expired at {token.expires_at.isoformat()}; ask the federation's operator for a new one"
    return None


def _participant(writer: Writer, name: str) -> Participant | None:
    try:
        return writer.participant(name)
    except NotFound:
        return None


def _holder_of_key(writer: Writer, key_sha256: str) -> str | None:
    """Who is enrolled with this key: two members with one key could read each other's shares."""
    return next((row.name for row in writer.participants().rows if row.identity_key_sha256 == key_sha256), None)
