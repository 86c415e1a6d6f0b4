"""Replacing the coordinator's CA: who knows the next one, who still uses the former one, and which step comes next.

Pure: looks at CAs, certificates, charters and names that others have read. The files are `coordinator.keystore`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from common.certificates import fingerprint, parse_certificates, serial_text, to_pem
from common.charter import Charter
from common.errors import ConfigInvalid
from coordinator.keystore import Rotation
from coordinator.pki import BACKDATING


class Step(Enum):
    """Where a replacement stands; the value is for people."""

    NONE = "one CA"
    STAGED = "another CA is known, and issues nothing yet"
    SWITCHED = "the new CA issues, and the former one still counts"


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose newest certificate this is: PEM chain and when it was issued (None where nobody has noted it)."""

    name: str
    chain: str
    issued_at: datetime | None = None

    @property
    def certificate(self) -> x509.Certificate:
        return parse_certificates(self.chain, what=f"the certificate of {self.name}")[0]

    def is_over(self, *, revoked: Collection[str], now: datetime) -> bool:
        """Whether the certificate has ended or is among the revoked serial numbers."""
        return serial_text(self.certificate) in revoked or self.certificate.not_valid_after_utc <= now


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that has not ended, with its charter and those of its members that the coordinator's CA certifies."""

    name: str
    charter: Charter
    certified: tuple[str, ...]


def step_of(rotation: Rotation) -> Step:
    if rotation.staged is not None:
        return Step.STAGED
    return Step.SWITCHED if rotation.former else Step.NONE


def issuer_of(holder: Holder, rotation: Rotation) -> str:
    """ "issuing", "staged" or "former": which of the CAs has issued the certificate; "another" if none of them."""
    leaf = holder.certificate
    known = (("issuing", rotation.issuing), ("staged", rotation.staged), *(("former", one) for one in rotation.former))
    return next((word for word, ca in known if ca is not None and _has_issued(ca, leaf)), "another")


def require_own_holders(holders: Iterable[Holder], rotation: Rotation) -> None:
    """Raises ConfigInvalid if no holder's certificate is of these CAs: files and database are of different federations.

    Whoever went on would see nobody who is late, and cut everybody off.
    """
    issuers = {issuer_of(one, rotation) for one in holders}
    if issuers == {"another"}:
        raise ConfigInvalid(
            "all certificates in the database are of another CA than the files': keys.folder and database belong to "
            "different federations, or these files are an old copy. Nothing was changed"
        )


def not_told(holders: Iterable[Holder], rotation: Rotation) -> tuple[str, ...]:
    """Who has renewed no certificate since the staged CA is there, and so does not know it."""
    staged = rotation.staged
    if staged is None:
        return ()
    since = staged.not_valid_before_utc + BACKDATING + timedelta(seconds=1)  # a certificate says whole seconds
    return tuple(one.name for one in holders if one.issued_at is None or one.issued_at < since)


def of_former(holders: Iterable[Holder], rotation: Rotation) -> tuple[str, ...]:
    """Whose certificate a former CA has issued: it is refused once that counts no more."""
    return tuple(one.name for one in holders if issuer_of(one, rotation) == "former")


def not_listing(runs: Iterable[OpenRun], authority: x509.Certificate) -> tuple[str, ...]:
    """Open runs whose charter does not list the CA for each member that it certifies: such members would be refused."""
    pem = to_pem([authority])
    return tuple(
        run.name
        for run in runs
        if any(pem not in member.ca_certificates for member in run.charter.members if member.id in run.certified)
    )


def described(rotation: Rotation) -> list[dict[str, str]]:
    """The CAs, for lists: what each is for, its fingerprint and its end."""
    known: Sequence[tuple[str, x509.Certificate | None]] = (
        ("issuing", rotation.issuing),
        ("staged", rotation.staged),
        *(("former", one) for one in rotation.former),
    )
    return [
        {"ca": word, "sha256": fingerprint(ca), "expire_time": ca.not_valid_after_utc.isoformat()}
        for word, ca in known
        if ca is not None
    ]


def _has_issued(authority: x509.Certificate, leaf: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
