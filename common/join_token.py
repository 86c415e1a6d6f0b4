"""The text of a join token: what a partner's operator is given, and all that the very first connection needs.

It carries the CA's certificate, so that the first connection is verified like every later one, and a secret that
counts once and for one name. The coordinator keeps the secret's digest alone. Pure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import parse_authorities, to_pem
from common.errors import InvalidArgument, JoinTokenInvalid
from common.identifiers import FederationId, ParticipantId, parse_federation_id, parse_participant_id

PREFIX: Final = "accord-join-"
SECRET_BYTES: Final = 32
MOST_CHARACTERS: Final = 16 * 1024
MOST_AUTHORITIES: Final = 2

_FORM: Final = 1
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a join token says. Addresses are HOST:PORT; `authority` is the PEM of the CA that signs the coordinator."""

    federation: FederationId
    participant: ParticipantId
    enrollment_address: str
    coordinator_address: str
    authority: str
    secret: str = field(repr=False)


def new_secret(random: Callable[[int], bytes]) -> str:
    """A secret as it is sent: 32 random bytes, base64url without padding. `random` is `secrets.token_bytes`."""
    return _encode(random(SECRET_BYTES))


def secret_sha256(secret: str) -> str:
    """What the coordinator keeps of a secret: SHA-256 in hex. 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def to_text(invitation: Invitation) -> str:
    """The token as one word, to be pasted. Raises InvalidArgument unless the CA is one or two PEM certificates.

    Two while the coordinator's CA is being replaced: whichever signs its certificate on the day of the enrolment.
    """
    authorities = parse_authorities(invitation.authority, what="the CA certificate")
    if not 1 <= len(authorities) <= MOST_AUTHORITIES:
        raise InvalidArgument(f"the CA certificate: a join token carries one, or {MOST_AUTHORITIES} during a change")
    content = {
        "form": _FORM,
        "federation": invitation.federation,
        "participant": invitation.participant,
        "enrollment": invitation.enrollment_address,
        "coordinator": invitation.coordinator_address,
        "authority": _encode(authorities[0].public_bytes(Encoding.DER)),
        "secret": invitation.secret,
    }
    if authorities[1:]:
        content["authority_next"] = _encode(authorities[1].public_bytes(Encoding.DER))
    return PREFIX + _encode(json.dumps(content, separators=(",", ":")).encode())


def from_text(text: str) -> Invitation:
    """What a pasted token says; spaces and line breaks in it do not matter.

    Raises JoinTokenInvalid; the message never holds a part of the token.
    """
    word = "".join(text.split())
    if not word.startswith(PREFIX):
        raise JoinTokenInvalid(f"this is not a join token; one begins with {PREFIX}")
    if len(word) > MOST_CHARACTERS:
        raise JoinTokenInvalid("this is not a join token; it is too long")
    try:
        content = json.loads(_decode(word.removeprefix(PREFIX)))
    except (ValueError, RecursionError):
        raise _damaged("it cannot be decoded") from None  # the cause would quote the token
    if not isinstance(content, dict) or content.get("form") != _FORM:
        raise _damaged("it is not of a form that this version reads; compare the versions of both sides")
    try:
        return Invitation(
            federation=parse_federation_id(_text(content, "federation")),
            participant=parse_participant_id(_text(content, "participant"), field="participant"),
            enrollment_address=_matching(content, "enrollment", _ADDRESS),
            coordinator_address=_matching(content, "coordinator", _ADDRESS),
            authority=_authority(_text(content, "authority"))
            + (_authority(_text(content, "authority_next")) if "authority_next" in content else ""),
            secret=_matching(content, "secret", _SECRET),
        )
    except InvalidArgument as error:
        raise _damaged(error.message) from None


def _authority(encoded: str) -> str:
    try:
        pem = to_pem([x509.load_der_x509_certificate(_decode(encoded))])
    except ValueError:
        raise InvalidArgument("authority: is not a certificate") from None
    parse_authorities(pem, what="authority")
    return pem


def _text(content: dict[str, object], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str):
        raise InvalidArgument(f"{name}: is missing")
    return value


def _matching(content: dict[str, object], name: str, pattern: re.Pattern[str]) -> str:
    value = _text(content, name)
    if not pattern.fullmatch(value):
        raise InvalidArgument(f"{name}: is malformed")
    return value


def _damaged(why: str) -> JoinTokenInvalid:
    return JoinTokenInvalid(f"the join token is damaged: {why}. Copy all of it, or ask for a new one")


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Strict base64url without padding. Raises ValueError."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
