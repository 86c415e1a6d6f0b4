"""The charter: who the members of a federation are and what bounds hold, agreed out of band and pinned by digest.

Pure. Its canonical bytes are what is digested, so a charter keeps its digest however it was indented. Every field is
written out, also those that have a usual value: a pinned digest must not depend on a version's defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

from common import jsonform
from common.certificates import parse_authorities, to_pem
from common.errors import CharterInvalid, InvalidArgument
from common.identifiers import FederationId, ParticipantId, ParticipantIdentity, parse_digest, parse_id

CHARTER_FORM: Final = 1
LEAST_MEMBERS: Final = 3
LEAST_COHORT_FLOOR: Final = 3


@dataclass(frozen=True, slots=True)
class CharterMember:
    """An organisation: its id, the URI in its certificate, and the CAs (PEM, one each) that may issue it.

    identity_key_sha256: SHA-256 of its public key (SubjectPublicKeyInfo) in hex. Where it is set, not even the CA can
    give the name to another key; a member whose CA is the coordinator's own needs it for the same reason.
    """

    id: str
    uri: str
    ca_certificates: tuple[str, ...]
    identity_key_sha256: str | None


@dataclass(frozen=True, slots=True)
class PlanBounds:
    """What a plan's fields may be at most (at least, where the name says so). Empty lists allow whatever is known.

    least_lane_limit: L, the steps between zero and the clip in which an element is sent.
    allow_named_survivors: whether manifests may say who was in, beside how many.
    """

    most_rounds: int
    most_rank: int
    most_alpha: float
    most_parameters: int
    most_learning_rate: float
    most_server_learning_rate: float
    most_steps_per_round: int
    most_batch_size: int
    most_length: int
    most_element_clip: float
    most_update_norm: float
    most_weight_cap: int
    least_lane_limit: int
    most_participants: int
    most_rounds_per_epoch: int
    most_window_seconds: int
    most_gate_loss_rise: float
    methods: tuple[str, ...]
    server_optimizers: tuple[str, ...]
    allow_named_survivors: bool


USUAL_BOUNDS: Final = PlanBounds(
    most_rounds=1000,
    most_rank=256,
    most_alpha=1024.0,
    most_parameters=2_000_000_000,
    most_learning_rate=0.01,
    most_server_learning_rate=10.0,
    most_steps_per_round=100_000,
    most_batch_size=1024,
    most_length=131_072,
    most_element_clip=10.0,
    most_update_norm=100_000.0,
    most_weight_cap=10_000_000,
    least_lane_limit=512,
    most_participants=1000,
    most_rounds_per_epoch=64,
    most_window_seconds=7 * 86_400,
    most_gate_loss_rise=1.0,
    methods=(),
    server_optimizers=(),
    allow_named_survivors=False,
)


@dataclass(frozen=True, slots=True)
class Charter:
    """The whole charter; make one, `check` it, and `to_bytes` is what the partners pin.

    coordinator_public_key: Ed25519, hex; signs start messages and manifests. colluders: members assumed to work with
    the coordinator, None for a third (`assumed_colluders`). base_model_digests: empty allows any base model.
    """

    federation: str
    members: tuple[CharterMember, ...]
    coordinator_public_key: str
    least_cohort: int
    colluders: int | None
    base_model_digests: tuple[str, ...]
    bounds: PlanBounds
    form: int

    @property
    def member_ids(self) -> tuple[str, ...]:
        """Ids of the members, in order."""
        return tuple(member.id for member in self.members)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, hex: what an organisation pins."""
        return jsonform.digest(jsonform.encode(self, Charter))

    @property
    def assumed_colluders(self) -> int:
        """c: the number that the charter names, else floor((n - 1) / 3) of its n members.

        Of the charter's members and not of those who happen to join: the coordinator chooses who is in a roster, and
        three who conspire with it are a third of ten, whichever fourth is put beside them.
        """
        return (len(self.members) - 1) // 3 if self.colluders is None else self.colluders

    def member(self, participant: str) -> CharterMember | None:
        """The member of that id, if there is one."""
        return next((member for member in self.members if member.id == participant), None)

    def to_bytes(self) -> bytes:
        """Canonical JSON: keys sorted, no spaces, ASCII."""
        return jsonform.encode(self, Charter).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Charter:
        """Read a charter, canonical or as a person has indented it. Raises CharterInvalid that lists every mistake."""
        _refuse_repeated_keys(content)
        try:
            charter = jsonform.decode(content, cls, what="the charter")
        except InvalidArgument as error:
            raise CharterInvalid(error.message) from error
        charter.check()
        return charter

    def check(self) -> None:
        """Raises CharterInvalid that lists everything that is wrong."""
        mistakes = [*self._own_mistakes(), *self._member_mistakes(), *_bounds_mistakes(self.bounds)]
        if mistakes:
            raise CharterInvalid("the charter is not valid: " + "; ".join(mistakes))

    def _own_mistakes(self) -> Iterator[str]:
        count = len(self.members)
        if self.form != CHARTER_FORM:
            yield f"form: {self.form} is not known, this version reads form {CHARTER_FORM}"
        yield from _id_mistakes(self.federation, field="federation")
        yield from _digest_mistakes(self.coordinator_public_key, field="coordinator_public_key")
        if count < LEAST_MEMBERS:
            yield f"members: {count} is too few; with fewer than {LEAST_MEMBERS} a sum shows each the other's update"
        if not LEAST_COHORT_FLOOR <= self.least_cohort <= max(count, LEAST_COHORT_FLOOR):
            yield f"least_cohort: must be from {LEAST_COHORT_FLOOR} to the number of members, not {self.least_cohort}"
        if self.colluders is not None and not 0 <= self.colluders <= max(count - 2, 0):
            yield f"colluders: must be from 0 to the number of members less 2, not {self.colluders}"
        for digest in self.base_model_digests:
            yield from _digest_mistakes(digest, field="base_model_digests")
        if len(set(self.base_model_digests)) < len(self.base_model_digests):
            yield "base_model_digests: one of them is there twice"

    def _member_mistakes(self) -> Iterator[str]:
        if list(self.member_ids) != sorted(set(self.member_ids)):
            yield "members: must be in the order of their ids, each once"
        keys = [member.identity_key_sha256 for member in self.members if member.identity_key_sha256]
        if len(set(keys)) < len(keys):
            yield "members: two of them have the same identity_key_sha256"
        for member in self.members:
            place = f"members.{member.id}"
            yield from _id_mistakes(member.id, field=f"{place}.id")
            wanted = ParticipantIdentity(FederationId(self.federation), ParticipantId(member.id)).uri
            if member.uri != wanted:
                yield f"{place}.uri: must be {wanted}"
            if member.identity_key_sha256 is not None:
                yield from _digest_mistakes(member.identity_key_sha256, field=f"{place}.identity_key_sha256")
            if not member.ca_certificates:
                yield f"{place}.ca_certificates: must name at least one CA"
            for pem in member.ca_certificates:
                yield from _authority_mistakes(pem, field=f"{place}.ca_certificates")


def canonical_authority(pem: str) -> str:
    """A CA's PEM as a charter holds it: the one certificate, without text around it. Raises InvalidArgument."""
    authorities = separate_authorities(pem, what="the CA certificate")
    if len(authorities) != 1:
        raise InvalidArgument("the CA certificate: a charter lists CAs one by one")
    return authorities[0]


def separate_authorities(pem: str, *, what: str) -> list[str]:
    """The CAs of one PEM text as a charter holds them. Raises InvalidArgument."""
    return [to_pem([authority]) for authority in parse_authorities(pem, what=what)]


def _authority_mistakes(pem: str, *, field: str) -> Iterator[str]:
    try:
        canonical = canonical_authority(pem)
    except InvalidArgument as error:
        yield f"{field}: {error.message}"
        return
    if pem != canonical:
        # One certificate, one spelling: otherwise two charters that say the same have different digests.
        yield f"{field}: has text or spaces beside the certificate"


def _bounds_mistakes(bounds: PlanBounds) -> Iterator[str]:
    for field in fields(bounds):
        value = getattr(bounds, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not (math.isfinite(value) and value > 0):
            yield f"bounds.{field.name}: must be a positive number, not {value}"
    if bounds.most_participants < LEAST_COHORT_FLOOR:
        yield f"bounds.most_participants: must be at least {LEAST_COHORT_FLOOR}"


def _id_mistakes(text: str, *, field: str) -> Iterator[str]:
    try:
        parse_id(text, field=field)
    except InvalidArgument as error:
        yield error.message


def _digest_mistakes(text: str, *, field: str) -> Iterator[str]:
    try:
        parse_digest(text, field=field)
    except InvalidArgument:
        yield f"{field}: must be 64 lower-case hex digits"


def _refuse_repeated_keys(content: bytes) -> None:
    """JSON readers differ in which of two equal keys counts; what was agreed on must not depend on the reader."""
    repeated: list[str] = []

    def seen(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        repeated.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    try:
        json.loads(content, object_pairs_hook=seen)
    except (ValueError, RecursionError) as error:
        raise CharterInvalid(f"the charter is not JSON: {error}") from error
    if repeated:
        raise CharterInvalid(f"the charter is not valid: given more than once: {', '.join(repeated)}")
