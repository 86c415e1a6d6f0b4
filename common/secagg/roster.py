"""The key roster of an epoch: every member's advertised keys in one order, and what the later steps need of it.

Both sides make and check it with the same functions. Knows nothing of shares and rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from common.errors import MalformedMessage, ProtocolViolation
from common.secagg import graph
from common.secagg.encoding import MAX_MEMBERS, Kind, Reader, Writer
from common.secagg.graph import Graph
from common.secagg.hashing import DIGEST_BYTES, digest, graph_key
from common.secagg.identity import IdentitySigner, MemberVerifier, verify_identity
from common.secagg.messages import SIGNING_KEY_BYTES, Advertisement, Signed
from common.secagg.plan import MAX_METRIC_GROUPS, KeyEpoch
from common.secagg.sealing import check_public_key


def sign_advertisement(advertisement: Advertisement, signer: IdentitySigner) -> Signed:
    """The advertisement under its member's identity key."""
    body = advertisement.encode()
    return Signed(body, signer("advertise", digest("advertise", advertisement.epoch_hash, body)))


def check_advertisement(epoch: KeyEpoch, message: bytes, verifier: MemberVerifier) -> Advertisement:
    """A member's advertised keys, once certificate, signature, epoch and form are right. Raises ProtocolViolation."""
    signed = Signed.decode(message)
    found = Advertisement.decode(signed.body)
    epoch_hash = epoch.hash
    if found.epoch_hash != epoch_hash:
        raise ProtocolViolation(f"{found.org_id} advertises for another plan or key epoch")
    key = verifier.verify(found.org_id, found.certificate_chain)
    verify_identity(key, "advertise", digest("advertise", epoch_hash, signed.body), signed.signature)
    if len(found.self_commitments) != epoch.plan.rounds_per_epoch:
        raise MalformedMessage(f"{found.org_id} commits to {len(found.self_commitments)} rounds")
    if found.metric_groups != epoch.plan.groups_named(found.metric_groups):
        raise MalformedMessage(f"{found.org_id} contributes to metric groups that the plan has not, or names one twice")
    check_public_key(found.kem_key)
    return found


@dataclass(frozen=True, slots=True)
class Members:
    """What a member's index means after the roster: name, signing key and the metric groups that it contributes to.

    The rest of the roster is not kept.
    """

    roster_hash: bytes
    org_ids: tuple[str, ...]
    signing_keys: tuple[bytes, ...]
    metric_groups: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.org_ids)

    def index_of(self, org_id: str) -> int:
        """Raises ProtocolViolation if the roster does not name the organisation."""
        try:
            return self.org_ids.index(org_id)
        except ValueError:
            raise ProtocolViolation(f"{org_id} is not in the key roster") from None

    def indices_of(self, org_ids: Iterable[str]) -> tuple[int, ...]:
        """Their indices, ascending. Raises ProtocolViolation if the roster does not name one of them."""
        return tuple(sorted(self.index_of(org_id) for org_id in org_ids))

    def names(self, indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.org_ids[index] for index in indices)

    def check_signature(self, signed: Signed, name: str, index: int) -> None:
        """Raises SignatureInvalid unless member `index` signed it, ProtocolViolation for no such index."""
        if not 0 <= index < len(self):
            raise ProtocolViolation(f"{name} names index {index} of a roster of {len(self)}")
        signed.check(self.signing_keys[index], name, self.org_ids[index])

    def encode(self) -> bytes:
        writer = Writer(Kind.MEMBERS)
        writer.fixed(self.roster_hash, DIGEST_BYTES)
        writer.u32(len(self))
        for org_id, key, groups in zip(self.org_ids, self.signing_keys, self.metric_groups, strict=True):
            writer.text(org_id)
            writer.fixed(key, SIGNING_KEY_BYTES)
            writer.texts(groups)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.MEMBERS)
        roster_hash = reader.fixed(DIGEST_BYTES)
        rows = [
            (reader.text(), reader.fixed(SIGNING_KEY_BYTES), reader.texts(MAX_METRIC_GROUPS))
            for _ in range(reader.u32(MAX_MEMBERS))
        ]
        reader.done()
        return cls(
            roster_hash,
            tuple(org_id for org_id, _, _ in rows),
            tuple(key for _, key, _ in rows),
            tuple(groups for _, _, groups in rows),
        )


def graph_of(epoch: KeyEpoch, members: Members) -> Graph:
    """Who is whose neighbour in the epoch: by the roster's size and hash, so everyone with the roster knows it."""
    size = len(members)
    sparse = graph.parameters(size, epoch.plan.thresholds(size).colluders)
    if sparse is None:
        return graph.complete(size)
    return graph.drawn(size, sparse, graph_key(members.roster_hash, epoch.hash))


@dataclass(frozen=True, slots=True)
class Roster:
    """A checked roster. `advertisements` are in the order of their org ids; a member's index is its place there."""

    message: bytes
    advertisements: tuple[Advertisement, ...]
    members: Members


def _encode(epoch_hash: bytes, messages: Iterable[bytes]) -> bytes:
    writer = Writer(Kind.ROSTER)
    writer.fixed(epoch_hash, DIGEST_BYTES)
    writer.blobs(tuple(messages))
    return writer.done()


def assemble_roster(epoch: KeyEpoch, messages: Iterable[bytes], verifier: MemberVerifier) -> Roster:
    """The roster of these advertise messages. Raises ProtocolViolation or PlanInvalid as `check_roster` does."""
    named = {Advertisement.decode(Signed.decode(message).body).org_id: message for message in messages}
    return check_roster(epoch, _encode(epoch.hash, (named[org_id] for org_id in sorted(named))), verifier)


def check_roster(epoch: KeyEpoch, message: bytes, verifier: MemberVerifier) -> Roster:
    """Check a received roster in full: every certificate and signature, order, no key twice, size within the plan.

    Raises ProtocolViolation (its subclasses name the cause) or PlanInvalid when too few or too many are named.
    """
    messages = _read_messages(epoch, message)
    epoch.plan.thresholds(len(messages))
    found = tuple(check_advertisement(epoch, one, verifier) for one in messages)
    org_ids = tuple(one.org_id for one in found)
    if list(org_ids) != sorted(set(org_ids)):
        raise ProtocolViolation("the key roster is not in the order of its names, or names one twice")
    _check_distinct(found)
    return read_roster(epoch, message)


def read_roster(epoch: KeyEpoch, message: bytes) -> Roster:
    """A roster that `check_roster` has passed before, read again from our own storage: certificates may have expired.

    Never for bytes that somebody sent. Raises ProtocolViolation when it does not parse or is of another epoch.
    """
    bodies = [Signed.decode(one).body for one in _read_messages(epoch, message)]
    found = tuple(Advertisement.decode(body) for body in bodies)
    roster_hash = digest("roster", epoch.hash, *(digest("body", body) for body in bodies))
    members = Members(
        roster_hash,
        tuple(one.org_id for one in found),
        tuple(one.signing_key for one in found),
        tuple(one.metric_groups for one in found),
    )
    return Roster(message, found, members)


def _read_messages(epoch: KeyEpoch, message: bytes) -> tuple[bytes, ...]:
    reader = Reader(message, Kind.ROSTER)
    if reader.fixed(DIGEST_BYTES) != epoch.hash:
        raise ProtocolViolation("the key roster is for another plan or key epoch")
    messages = reader.blobs(MAX_MEMBERS)
    reader.done()
    return messages


def _check_distinct(advertisements: tuple[Advertisement, ...]) -> None:
    """No two members share a key: one would speak for, or read what is sealed to, the other."""
    for name in ("signing_key", "kem_key", "nonce"):
        values = Counter(getattr(one, name) for one in advertisements)
        for value, count in values.items():
            if count > 1:
                owners = ", ".join(one.org_id for one in advertisements if getattr(one, name) == value)
                raise ProtocolViolation(f"{owners} advertise the same {name}")
