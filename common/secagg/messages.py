"""The messages, each a frozen value with one encoding.

Advertise, roster, deposit and ready make a key epoch; start, receipt, commit and reveal make a round. Parsing checks
the form alone; who may say what, and when, is checked where a message is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import MalformedMessage, SignatureInvalid
from common.secagg.encoding import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_MEMBERS,
    MAX_ROUNDS,
    Kind,
    Reader,
    Writer,
)
from common.secagg.hashing import DIGEST_BYTES, digest
from common.secagg.identity import signature_input
from common.secagg.plan import MAX_METRIC_GROUPS, RoundKind
from common.secagg.sealing import PUBLIC_BYTES
from common.secagg.shamir import SHARE_BYTES

NONCE_BYTES: Final = 32
SIGNING_KEY_BYTES: Final = 32
MAX_IDENTITY_SIGNATURE_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Signed:
    """Exact bytes and a signature over them. Receivers verify before they parse. The body may be a Reveal's: shares."""

    body: bytes = field(repr=False)
    signature: bytes

    def encode(self) -> bytes:
        writer = Writer(Kind.SIGNED)
        writer.blob(self.body)
        writer.blob(self.signature)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.SIGNED)
        signed = cls(reader.blob(), reader.blob(MAX_IDENTITY_SIGNATURE_BYTES))
        reader.done()
        return signed

    @classmethod
    def by_epoch_key(cls, signing_seed: bytes, name: str, body: bytes) -> Self:
        """Sign with a member's Ed25519 key of the epoch (RFC 8032: the same bytes give the same signature)."""
        key = Ed25519PrivateKey.from_private_bytes(signing_seed)
        return cls(body, key.sign(signature_input(name, digest(name, body))))

    def check(self, signing_key: bytes, name: str, sender: str) -> None:
        """Raises SignatureInvalid unless this is `sender`'s signature on a message of that name."""
        try:
            key = Ed25519PublicKey.from_public_bytes(signing_key)
            key.verify(self.signature, signature_input(name, digest(name, self.body)))
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid(f"the signature on {name} is not that of {sender}") from error


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A member's keys for one epoch. Signed as "advertise" by the identity key of its certificate.

    signing_key: Ed25519. kem_key: ML-KEM-768 + X25519. self_commitments, escrow_commitments: one digest a round of
    b[r] and K[r]. nonce makes two epochs' rosters differ. metric_groups: those of the plan's to which the member
    contributes in this epoch, in the plan's order.
    """

    epoch_hash: bytes
    org_id: str
    certificate_chain: tuple[bytes, ...]
    nonce: bytes
    signing_key: bytes
    kem_key: bytes
    self_commitments: tuple[bytes, ...]
    escrow_commitments: tuple[bytes, ...]
    metric_groups: tuple[str, ...]

    def encode(self) -> bytes:
        writer = Writer(Kind.ADVERTISEMENT)
        writer.fixed(self.epoch_hash, DIGEST_BYTES)
        writer.text(self.org_id)
        writer.blobs(self.certificate_chain)
        writer.fixed(self.nonce, NONCE_BYTES)
        writer.fixed(self.signing_key, SIGNING_KEY_BYTES)
        writer.fixed(self.kem_key, PUBLIC_BYTES)
        writer.u32(len(self.self_commitments))
        for one, other in zip(self.self_commitments, self.escrow_commitments, strict=True):
            writer.fixed(one, DIGEST_BYTES)
            writer.fixed(other, DIGEST_BYTES)
        writer.texts(self.metric_groups)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.ADVERTISEMENT)
        epoch_hash, org_id = reader.fixed(DIGEST_BYTES), reader.text()
        chain = reader.blobs(MAX_CERTIFICATES, MAX_CERTIFICATE_BYTES)
        nonce, signing_key, kem_key = (reader.fixed(n) for n in (NONCE_BYTES, SIGNING_KEY_BYTES, PUBLIC_BYTES))
        commitments = [(reader.fixed(DIGEST_BYTES), reader.fixed(DIGEST_BYTES)) for _ in range(reader.u32(MAX_ROUNDS))]
        metric_groups = reader.texts(MAX_METRIC_GROUPS)
        reader.done()
        return cls(
            epoch_hash=epoch_hash,
            org_id=org_id,
            certificate_chain=chain,
            nonce=nonce,
            signing_key=signing_key,
            kem_key=kem_key,
            self_commitments=tuple(one for one, _ in commitments),
            escrow_commitments=tuple(other for _, other in commitments),
            metric_groups=metric_groups,
        )


@dataclass(frozen=True, slots=True)
class SealedShare:
    """One owner's shares for one holder, all rounds of the epoch. Signed as "share" by the owner.

    commitments: for each round, in the clear, `commit_shares` of the K-share and the b-share in the box: the holder
    compares on opening and the coordinator at the reveal, so a wrong share has exactly one culprit.
    """

    roster_hash: bytes
    owner: int
    holder: int
    commitments: tuple[bytes, ...]
    box: bytes

    def encode(self) -> bytes:
        writer = Writer(Kind.SEALED_SHARE)
        writer.fixed(self.roster_hash, DIGEST_BYTES)
        writer.u32(self.owner)
        writer.u32(self.holder)
        writer.u32(len(self.commitments))
        for commitment in self.commitments:
            writer.fixed(commitment, DIGEST_BYTES)
        writer.blob(self.box)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.SEALED_SHARE)
        roster_hash, owner, holder = reader.fixed(DIGEST_BYTES), reader.u32(MAX_MEMBERS), reader.u32(MAX_MEMBERS)
        commitments = tuple(reader.fixed(DIGEST_BYTES) for _ in range(reader.u32(MAX_ROUNDS)))
        share = cls(roster_hash, owner, holder, commitments, reader.blob())
        reader.done()
        return share


@dataclass(frozen=True, slots=True)
class Deposit:
    """All sealed shares of one owner, one signed envelope for each holder, itself included, in index order."""

    roster_hash: bytes
    owner: int
    envelopes: tuple[bytes, ...]

    def encode(self) -> bytes:
        writer = Writer(Kind.DEPOSIT)
        writer.fixed(self.roster_hash, DIGEST_BYTES)
        writer.u32(self.owner)
        writer.blobs(self.envelopes)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.DEPOSIT)
        deposit = cls(reader.fixed(DIGEST_BYTES), reader.u32(MAX_MEMBERS), reader.blobs(MAX_MEMBERS))
        reader.done()
        return deposit


@dataclass(frozen=True, slots=True)
class Ready:
    """What a member holds, its escrowed pair keys, its view of every pair. Signed as "ready" by the epoch key.

    opened: owners whose shares it holds, itself included. escrows: for each round a box of the pair keys with the
    members of `opened` but itself, ascending. pair_commitments: for each round, for each of them, a digest.
    """

    roster_hash: bytes
    index: int
    opened: tuple[int, ...]
    members: int
    escrows: tuple[bytes, ...]
    pair_commitments: tuple[tuple[bytes, ...], ...]

    @property
    def partners(self) -> tuple[int, ...]:
        """Members with which it has a pair key, ascending."""
        return tuple(other for other in self.opened if other != self.index)

    def of_round(self, offset: int) -> Self:
        """What it says of one round, at its place among the others, which are left empty: no message, but small."""
        at = range(len(self.escrows))
        return replace(
            self,
            escrows=tuple(self.escrows[i] if i == offset else b"" for i in at),
            pair_commitments=tuple(self.pair_commitments[i] if i == offset else () for i in at),
        )

    def encode(self) -> bytes:
        writer = Writer(Kind.READY)
        writer.fixed(self.roster_hash, DIGEST_BYTES)
        writer.u32(self.index)
        writer.indices(self.opened, self.members)
        writer.u32(len(self.escrows))
        for escrow, commitments in zip(self.escrows, self.pair_commitments, strict=True):
            writer.blob(escrow)
            for commitment in commitments:
                writer.fixed(commitment, DIGEST_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.READY)
        roster_hash, index = reader.fixed(DIGEST_BYTES), reader.u32(MAX_MEMBERS)
        opened, members = reader.indices()
        pairs = len([other for other in opened if other != index])
        escrows, commitments = [], []
        for _ in range(reader.u32(MAX_ROUNDS)):
            escrows.append(reader.blob(MAX_MEMBERS * DIGEST_BYTES + 16))
            commitments.append(tuple(reader.fixed(DIGEST_BYTES) for _ in range(pairs)))
        reader.done()
        return cls(roster_hash, index, opened, members, tuple(escrows), tuple(commitments))


@dataclass(frozen=True, slots=True)
class Start:
    """The coordinator's word that opens a round: who is in and on which model. Not signed: see RoundContext.

    members: size of the roster. model_hash: digest of the model that the updates were trained from.
    """

    epoch_hash: bytes
    roster_hash: bytes
    round: int
    kind: RoundKind
    cohort: tuple[int, ...]
    members: int
    model_hash: bytes

    def encode(self) -> bytes:
        writer = Writer(Kind.START)
        writer.fixed(self.epoch_hash, DIGEST_BYTES)
        writer.fixed(self.roster_hash, DIGEST_BYTES)
        writer.u32(self.round)
        writer.u8(self.kind)
        writer.indices(self.cohort, self.members)
        writer.fixed(self.model_hash, DIGEST_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.START)
        epoch_hash, roster_hash = reader.fixed(DIGEST_BYTES), reader.fixed(DIGEST_BYTES)
        round_, kind = reader.u32(), reader.u8()
        cohort, members = reader.indices()
        model_hash = reader.fixed(DIGEST_BYTES)
        reader.done()
        if kind not in tuple(RoundKind):
            raise MalformedMessage(f"start: round kind {kind} is unknown")
        return cls(epoch_hash, roster_hash, round_, RoundKind(kind), cohort, members, model_hash)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A member's word for the one masked update of its round. Signed as "upload" by the epoch key."""

    context: bytes
    index: int
    upload_hash: bytes

    def encode(self) -> bytes:
        writer = Writer(Kind.RECEIPT)
        writer.fixed(self.context, DIGEST_BYTES)
        writer.u32(self.index)
        writer.fixed(self.upload_hash, DIGEST_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.RECEIPT)
        receipt = cls(reader.fixed(DIGEST_BYTES), reader.u32(MAX_MEMBERS), reader.fixed(DIGEST_BYTES))
        reader.done()
        return receipt


@dataclass(frozen=True, slots=True)
class Commit:
    """A member binds itself to one survivor set. Signed as "commit" by the epoch key."""

    context: bytes
    index: int
    survivors: tuple[int, ...]
    members: int

    def encode(self) -> bytes:
        writer = Writer(Kind.COMMIT)
        writer.fixed(self.context, DIGEST_BYTES)
        writer.u32(self.index)
        writer.indices(self.survivors, self.members)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.COMMIT)
        context, index = reader.fixed(DIGEST_BYTES), reader.u32(MAX_MEMBERS)
        survivors, members = reader.indices()
        reader.done()
        return cls(context, index, survivors, members)


@dataclass(frozen=True, slots=True)
class OpenedShare:
    """One share and the digest of its sibling.

    Of which kind it is follows from the survivor set, so two kinds for one owner cannot be written.
    """

    share: bytes = field(repr=False)
    sibling: bytes


@dataclass(frozen=True, slots=True)
class Reveal:
    """One share for each owner of the cohort: b for a survivor, K for a dropped member. Signed as "reveal".

    shares: for each cohort member whose shares the sender holds, ascending.
    """

    context: bytes
    index: int
    survivors: tuple[int, ...]
    members: int
    shares: tuple[OpenedShare, ...]

    def encode(self) -> bytes:
        writer = Writer(Kind.REVEAL)
        writer.fixed(self.context, DIGEST_BYTES)
        writer.u32(self.index)
        writer.indices(self.survivors, self.members)
        writer.u32(len(self.shares))
        for opened in self.shares:
            writer.fixed(opened.share, SHARE_BYTES)
            writer.fixed(opened.sibling, DIGEST_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.REVEAL)
        context, index = reader.fixed(DIGEST_BYTES), reader.u32(MAX_MEMBERS)
        survivors, members = reader.indices()
        shares = tuple(
            OpenedShare(reader.fixed(SHARE_BYTES), reader.fixed(DIGEST_BYTES)) for _ in range(reader.u32(MAX_MEMBERS))
        )
        reader.done()
        return cls(context, index, survivors, members, shares)
