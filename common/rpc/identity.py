"""Who is calling: read from the client certificate of the connection, never from a field.

Knows nothing of what a caller may do, nor of who was revoked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import identity_of, parse_certificates, serial_text, spki_sha256
from common.errors import InvalidArgument, PermissionDenied, Unauthenticated
from common.identifiers import (
    CoordinatorIdentity,
    FederationId,
    OperatorIdentity,
    ParticipantId,
    ParticipantIdentity,
    Role,
    operator_name,
    participant_name,
)

PEER_CERTIFICATE: Final = "x509_pem_cert"
PEER_CHAIN: Final = "x509_pem_cert_chain"
CACHED_CERTIFICATES: Final = 4096


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of a call. `serial` is the certificate's in lower-case hex, `spki_sha256` its key's digest.

    certificate_chain: as it was shown, DER, leaf first.
    """

    role: Role
    id: str = ""
    serial: str = ""
    spki_sha256: str = ""
    not_after: datetime | None = None
    certificate_chain: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def actor(self) -> str:
        """The caller's resource name, as log and audit spell it."""
        if self.role is Role.PARTICIPANT:
            return participant_name(self.id)
        return operator_name(self.id) if self.role.is_operator else self.role.value

    @property
    def participant(self) -> ParticipantId:
        """The id of a calling participant. Raises PermissionDenied for anybody else."""
        if self.role is not Role.PARTICIPANT:
            raise PermissionDenied(f"{self.actor} is not a participant")
        return ParticipantId(self.id)


ANONYMOUS: Final = Caller(role=Role.ANONYMOUS)

_current: ContextVar[Caller] = ContextVar("accord_caller")


def current_caller() -> Caller:
    """Who made the call that this code serves; set by the guard, also in threads of `asyncio.to_thread`.

    Raises Unauthenticated outside a guarded call: code that needs a caller must not run without one.
    """
    try:
        return _current.get()
    except LookupError:
        raise Unauthenticated("there is no caller here; this code serves no guarded call") from None


def set_current_caller(caller: Caller) -> None:
    """For the guard alone: every call runs in a context of its own, so there is nothing to reset."""
    _current.set(caller)


class CallerReader:
    """Reads callers of one federation from a connection's authentication context."""

    def __init__(self, federation: FederationId) -> None:
        self._federation = federation
        # A connection shows the same certificate with every call; parsing it costs more than the rest of the guard.
        self._of_certificate = lru_cache(maxsize=CACHED_CERTIFICATES)(self._parse)

    def read(self, auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
        """The caller; ANONYMOUS where the connection carries no client certificate.

        That the certificate comes from a trusted CA was checked at the handshake.
        Raises Unauthenticated if it names nobody, somebody of another federation, or a coordinator.
        """
        certificates = list(auth_context.get(PEER_CERTIFICATE, ()))
        if not certificates:
            return ANONYMOUS
        return self._of_certificate(certificates[0], b"".join(auth_context.get(PEER_CHAIN, ())))

    def _parse(self, pem: bytes, chain_pem: bytes) -> Caller:
        try:
            certificate = parse_certificates(pem, what="the client certificate")[0]
            chain = parse_certificates(chain_pem or pem, what="the client certificate's chain")
        except InvalidArgument as error:
            raise Unauthenticated(str(error)) from error
        identity = identity_of(certificate)
        if identity.federation != self._federation:
            raise Unauthenticated(
                f"the certificate is of federation {identity.federation!r}, and this is {self._federation!r}"
            )
        match identity:
            case ParticipantIdentity(id=name):
                role = Role.PARTICIPANT
            case OperatorIdentity(id=name, role=role):
                pass
            case CoordinatorIdentity():
                raise Unauthenticated("a coordinator's certificate is not a caller's")
        return Caller(
            role=role,
            id=name,
            serial=serial_text(certificate),
            spki_sha256=spki_sha256(certificate.public_key()),
            not_after=certificate.not_valid_after_utc,
            certificate_chain=tuple(one.public_bytes(Encoding.DER) for one in chain),
        )
