"""Ids, resource names and identity URIs: the one place that knows how they are spelled.

An id is 1 to 40 of a-z, 0-9 and "-", and begins with a letter or a digit, so that it is a harmless folder name and
never mistaken for a command's option. Inside the program an id is bare ("bank"); on the wire it is a resource name
("participants/bank"). Who somebody is stands in the certificate as a URI: accord://{federation}/participants/{id},
accord://{federation}/operators/{role}/{id} or accord://{federation}/coordinator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType

from common.errors import InvalidArgument

FederationId = NewType("FederationId", str)
RunId = NewType("RunId", str)
ParticipantId = NewType("ParticipantId", str)
OperatorId = NewType("OperatorId", str)
TokenId = NewType("TokenId", str)
RoundNumber = NewType("RoundNumber", int)
Digest = NewType("Digest", str)

IDENTITY_SCHEME: Final = "accord://"
MOST_NUMBER: Final = 2**32 - 1  # rounds and epochs are uint32 on the wire

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,9}")
_SHOWN_CHARACTERS: Final = 60


class Role(Enum):
    """What a caller may be; the value is how an operator's role is spelled in its certificate."""

    ANONYMOUS = "anonymous"
    PARTICIPANT = "participant"
    VIEWER = "viewer"
    OPERATOR = "operator"
    SECURITY_OFFICER = "security-officer"

    @property
    def is_operator(self) -> bool:
        """Whether people hold this role: viewers, operators and security officers."""
        return self in OPERATOR_ROLES


OPERATOR_ROLES: Final = frozenset({Role.VIEWER, Role.OPERATOR, Role.SECURITY_OFFICER})


# --- ids -----------------------------------------------------------------------------------------------------------


def parse_id(text: str, *, field: str) -> str:
    """`text` if it is an id. Raises InvalidArgument that names the field."""
    if not _ID.fullmatch(text):
        raise InvalidArgument(
            f'{field}: {_shown(text)} is not an id; use 1 to 40 of a-z, 0-9 and "-", beginning with a letter or digit'
        )
    return text


def parse_federation_id(text: str, *, field: str = "federation") -> FederationId:
    return FederationId(parse_id(text, field=field))


def parse_run_id(text: str, *, field: str = "run_id") -> RunId:
    return RunId(parse_id(text, field=field))


def parse_participant_id(text: str, *, field: str = "participant_id") -> ParticipantId:
    return ParticipantId(parse_id(text, field=field))


def parse_operator_id(text: str, *, field: str = "operator_id") -> OperatorId:
    return OperatorId(parse_id(text, field=field))


def parse_digest(text: str, *, field: str = "digest") -> Digest:
    """A SHA-256 in lower-case hex. Raises InvalidArgument that names the field."""
    if not _DIGEST.fullmatch(text):
        raise InvalidArgument(f"{field}: {_shown(text)} is not a digest; it has 64 lower-case hex digits (SHA-256)")
    return Digest(text)


def parse_operator_role(text: str, *, field: str = "role") -> Role:
    """A role that an operator's certificate may carry. Raises InvalidArgument that lists them."""
    for role in OPERATOR_ROLES:
        if role.value == text:
            return role
    known = ", ".join(sorted(role.value for role in OPERATOR_ROLES))
    raise InvalidArgument(f"{field}: {_shown(text)} is not a role of an operator; use one of {known}")


# --- resource names ------------------------------------------------------------------------------------------------


def run_name(run: str) -> str:
    return f"runs/{run}"


def round_name(run: str, number: int) -> str:
    return f"runs/{run}/rounds/{number}"


def participant_name(participant: str) -> str:
    return f"participants/{participant}"


def operator_name(operator: str) -> str:
    return f"operators/{operator}"


def adapter_name(digest: str) -> str:
    return f"adapters/{digest}"


def join_token_name(token: str) -> str:
    return f"joinTokens/{token}"


def web_token_name(token: str) -> str:
    return f"webTokens/{token}"


def parse_run_name(name: str, *, field: str = "name") -> RunId:
    """The id in "runs/{run}". Raises InvalidArgument that names the field and shows the form."""
    (run,) = _parts(name, form="runs/{run}", field=field)
    return RunId(parse_id(run, field=field))


def parse_round_name(name: str, *, field: str = "name") -> tuple[RunId, RoundNumber]:
    """The ids in "runs/{run}/rounds/{number}"; rounds count from 1. Raises InvalidArgument."""
    run, number = _parts(name, form="runs/{run}/rounds/{number}", field=field)
    if not _NUMBER.fullmatch(number) or int(number) > MOST_NUMBER:
        raise InvalidArgument(f"{field}: {_shown(number)} is not the number of a round; rounds count from 1")
    return RunId(parse_id(run, field=field)), RoundNumber(int(number))


def parse_participant_name(name: str, *, field: str = "name") -> ParticipantId:
    """The id in "participants/{participant}". Raises InvalidArgument."""
    (participant,) = _parts(name, form="participants/{participant}", field=field)
    return ParticipantId(parse_id(participant, field=field))


def parse_join_token_name(name: str, *, field: str = "name") -> TokenId:
    """The id in "joinTokens/{token}". Raises InvalidArgument."""
    (token,) = _parts(name, form="joinTokens/{token}", field=field)
    return TokenId(parse_id(token, field=field))


def parse_web_token_name(name: str, *, field: str = "name") -> TokenId:
    """The id in "webTokens/{token}". Raises InvalidArgument."""
    (token,) = _parts(name, form="webTokens/{token}", field=field)
    return TokenId(parse_id(token, field=field))


# --- identity URIs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CoordinatorIdentity:
    """The federation's coordinator."""

    federation: FederationId

    @property
    def uri(self) -> str:
        return f"{IDENTITY_SCHEME}{self.federation}/coordinator"


@dataclass(frozen=True, slots=True)
class ParticipantIdentity:
    """An organisation's daemon."""

    federation: FederationId
    id: ParticipantId

    @property
    def uri(self) -> str:
        return f"{IDENTITY_SCHEME}{self.federation}/participants/{self.id}"


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """A person at the coordinator, in one role."""

    federation: FederationId
    id: OperatorId
    role: Role

    @property
    def uri(self) -> str:
        return f"{IDENTITY_SCHEME}{self.federation}/operators/{self.role.value}/{self.id}"


Identity = CoordinatorIdentity | ParticipantIdentity | OperatorIdentity


def parse_identity_uri(uri: str) -> Identity:
    """Who a certificate's URI names. Raises InvalidArgument that shows the three forms."""
    if not uri.startswith(IDENTITY_SCHEME):
        raise _not_an_identity(uri)
    match uri.removeprefix(IDENTITY_SCHEME).split("/"):
        case [federation, "coordinator"]:
            return CoordinatorIdentity(parse_federation_id(federation))
        case [federation, "participants", participant]:
            return ParticipantIdentity(parse_federation_id(federation), parse_participant_id(participant))
        case [federation, "operators", role, operator]:
            return OperatorIdentity(
                parse_federation_id(federation), parse_operator_id(operator), parse_operator_role(role)
            )
        case _:
            raise _not_an_identity(uri)


def _not_an_identity(uri: str) -> InvalidArgument:
    return InvalidArgument(
        f"{_shown(uri)} names nobody; an identity is accord://FEDERATION/participants/ID, "
        "accord://FEDERATION/operators/ROLE/ID or accord://FEDERATION/coordinator"
    )


def _parts(name: str, *, form: str, field: str) -> list[str]:
    """What stands in the places of `form` that are in braces."""
    wanted, found = form.split("/"), name.split("/")
    fits = len(wanted) == len(found) and all(
        place.startswith("{") or place == part for place, part in zip(wanted, found, strict=True)
    )
    if not fits:
        raise InvalidArgument(f"{field}: {_shown(name)} is not a name of the form {form}")
    return [part for place, part in zip(wanted, found, strict=True) if place.startswith("{")]


def _shown(text: str) -> str:
    """`text` as it may stand in a message: quoted, escaped and short, whatever a caller has sent."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return ascii(short)
