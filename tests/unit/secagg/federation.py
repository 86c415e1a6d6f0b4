"""A federation in memory: real certificates, real messages, every phase journalled and read back before its message."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol, Self, TypeVar

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.secagg import (
    Advertising,
    Bound,
    CheckedReveal,
    ClipSlot,
    CloseKind,
    Dealt,
    Deposit,
    EpochKeys,
    KeyEpoch,
    Masked,
    Masking,
    MetricGroup,
    PinnedMember,
    PinnedMembers,
    Ready,
    Revealed,
    Roster,
    RoundContext,
    RoundKind,
    SecaggPlan,
    Words,
    add_into,
    assemble_roster,
    begin_epoch,
    check_deposit,
    check_ready,
    choose_close,
    envelopes_for,
    identity_signer,
    make_start,
    open_masks,
    settle_epoch,
    share_commitments,
    upload_hash,
    verify_commit,
    verify_reveal,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MODEL = hashlib.sha256(b"model").digest()


class Phase(Protocol):
    def to_bytes(self) -> bytes: ...
    @classmethod
    def from_bytes(cls, data: bytes) -> Self: ...


P = TypeVar("P", bound=Phase)


def journalled(phase: P) -> P:
    """The phase as a process that was killed right after journalling finds it."""
    return type(phase).from_bytes(phase.to_bytes())


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


@dataclass(frozen=True)
class Authority:
    """A small CA that signs client certificates."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str = "Test CA") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            x509.CertificateBuilder(
                subject, subject, key.public_key(), 1, NOW - timedelta(days=9), NOW.replace(year=2040)
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, uri: str, *, days: int = 30) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "member")])
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            x509.CertificateBuilder(
                self.certificate.subject,
                subject,
                key.public_key(),
                x509.random_serial_number(),
                NOW - timedelta(days=1),
                NOW - timedelta(days=1) + timedelta(days=days),
            )
            .add_extension(san, critical=False)
            .add_extension(issuer_key, critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Identity(key, certificate)


@dataclass(frozen=True)
class Identity:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def chain(self) -> tuple[bytes, ...]:
        return (self.certificate.public_bytes(Encoding.DER),)


def member_uri(org_id: str) -> str:
    return f"accord://test/participants/{org_id}"


@lru_cache(maxsize=1)
def authority() -> Authority:
    return Authority.create()


@lru_cache(maxsize=32)
def identity(org_id: str) -> Identity:
    return authority().issue(member_uri(org_id))


def org_name(number: int) -> str:
    return f"org-{number:02}"


@lru_cache(maxsize=32)
def verifier(members: int) -> PinnedMembers:
    pinned = {org_name(i): PinnedMember(member_uri(org_name(i)), authority().pem) for i in range(members)}
    return PinnedMembers(pinned, NOW)


def make_plan(
    members: int,
    *,
    parameters: int = 300,
    clip: float = 0.5,
    floor: int = 3,
    rounds: int = 2,
    colluders: int | None = None,
    chunk_words: int = 16,
    lanes: int = 4,
    metrics: tuple[str, ...] = ("loss", "tokens"),
    groups: tuple[MetricGroup, ...] = (),
) -> SecaggPlan:
    """Small chunks, so that a few hundred parameters already span several."""
    slots = (ClipSlot(parameters, clip),) if parameters else ()
    return SecaggPlan(
        plan_hash=hashlib.sha256(b"plan").digest(),
        run_id=hashlib.sha256(b"run").digest(),
        members_floor=floor,
        members_limit=members,
        rounds_per_epoch=rounds,
        vectors=(slots,),
        metrics=metrics,
        lanes=lanes,
        colluders=colluders,
        chunk_words=chunk_words,
        metric_groups=groups,
    )


@dataclass
class Epoch:
    """A key epoch after set-up, as the coordinator and every participant hold it."""

    epoch: KeyEpoch
    roster: Roster
    deposits: dict[int, Deposit]
    readies: dict[int, Ready]
    keys: dict[int, EpochKeys]
    usable: tuple[int, ...]

    @property
    def members(self):
        return self.roster.members


Declared = Mapping[int, Collection[str]]
"""By member, the metric groups that it contributes to; none where it is not named."""


def advertise(
    epoch: KeyEpoch, members: int, *, seed: int = 0, declared: Declared | None = None
) -> dict[str, Advertising]:
    return {
        name: journalled(
            begin_epoch(
                epoch,
                org_id=name,
                certificate_chain=identity(name).chain,
                identity_signer=identity_signer(identity(name).key),
                metric_groups=(declared or {}).get(i, ()),
                random_bytes=seeded(1000 * seed + i),
            )
        )
        for i, name in enumerate(org_name(i) for i in range(members))
    }


def deal(
    epoch: KeyEpoch, members: int, *, seed: int = 0, declared: Declared | None = None
) -> tuple[Roster, dict[int, Dealt]]:
    advertised = advertise(epoch, members, seed=seed, declared=declared)
    roster = assemble_roster(epoch, [phase.message for phase in advertised.values()], verifier(members))
    dealt = {
        index: journalled(advertised[name].deal(roster.message, verifier(members)))
        for index, name in enumerate(roster.members.org_ids)
    }
    return roster, dealt


def set_up(
    plan: SecaggPlan,
    members: int,
    *,
    first_round: int = 1,
    seed: int = 0,
    no_deposit: Collection[int] = (),
    no_ready: Collection[int] = (),
    declared: Declared | None = None,
) -> Epoch:
    epoch = KeyEpoch(plan, 0, first_round)
    roster, dealt = deal(epoch, members, seed=seed, declared=declared)
    deposits = {
        i: check_deposit(epoch, roster.members, phase.message, sender=i)
        for i, phase in dealt.items()
        if i not in no_deposit
    }
    keys = {}
    for i, phase in dealt.items():
        if i in no_ready or i in no_deposit:
            continue
        confirmed, refusals = phase.confirm(envelopes_for(roster.members, deposits.values(), i))
        assert refusals == ()
        keys[i] = journalled(confirmed)
    readies = {i: check_ready(epoch, roster.members, phase.message, sender=i) for i, phase in keys.items()}
    usable = settle_epoch(epoch, roster.members, readies.values()).usable
    return Epoch(epoch, roster, deposits, readies, keys, usable)


@dataclass
class Round:
    """One round in memory. Uploads are lists of chunks; `upload` masks, seals and hands in."""

    epoch: Epoch
    context: RoundContext
    phases: dict[int, Masking | Masked | Bound | Revealed] = field(default_factory=dict)
    uploads: dict[int, list[Words]] = field(default_factory=dict)
    receipts: dict[int, bytes] = field(default_factory=dict)
    commits: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        epoch: Epoch,
        *,
        number: int = 1,
        kind: RoundKind = RoundKind.TRAINING,
        cohort: Iterable[int] | None = None,
        model: bytes = MODEL,
    ) -> Round:
        context = make_start(
            epoch.epoch,
            epoch.members,
            round_number=number,
            kind=kind,
            cohort=epoch.usable if cohort is None else cohort,
            model_hash=model,
        )
        round_ = cls(epoch, RoundContext.decode(context.encode()))
        for index in context.cohort:
            keys, masking = epoch.keys[index].start(context.start.encode(), model_hash=model)
            epoch.keys[index] = journalled(keys)
            round_.phases[index] = journalled(masking)
        return round_

    def masking(self, index: int) -> Masking:
        phase = self.phases[index]
        assert isinstance(phase, Masking)
        return phase

    def masked(self, index: int) -> Masked:
        phase = self.phases[index]
        assert isinstance(phase, Masked)
        return phase

    def mask(self, index: int, chunks: list[Words]) -> None:
        """Mask and seal, without handing in."""
        masking = self.masking(index)
        masker = masking.masker()
        masked = [chunk.copy() for chunk in chunks]
        for at, words in enumerate(masked):
            masker.add_into(at, words)
        self.uploads[index] = masked
        digest = upload_hash([hashlib.sha256(words.tobytes()).digest() for words in masked])
        self.phases[index] = journalled(masking.seal(digest))

    def hand_in(self, index: int) -> None:
        phase = self.masked(index)
        receipt = self.context.check_receipt(phase.message)
        assert receipt.index == index
        self.receipts[index] = phase.message

    def receipts_of(self, survivors: Iterable[int]) -> list[bytes]:
        return [self.receipts[index] for index in survivors]

    def fast_close(self, online: Iterable[int]) -> dict[int, bytes]:
        reveals = {}
        for index in online:
            revealed = journalled(self.masked(index).accept_fast_close(self.receipts_of(self.context.cohort)))
            self.phases[index] = revealed
            reveals[index] = revealed.message
        return reveals

    def slow_close(
        self, survivors: tuple[int, ...], *, commit: Iterable[int], reveal: Iterable[int]
    ) -> dict[int, bytes]:
        for index in commit:
            phase = self.phases[index]
            if isinstance(phase, Masking):
                phase = journalled(phase.abandon())
            assert isinstance(phase, Masked)
            bound = journalled(phase.bind(survivors, self.receipts_of(survivors)))
            verify_commit(self.context, survivors, bound.message, sender=index)
            self.phases[index] = bound
            self.commits[index] = bound.message
        reveals = {}
        for index in reveal:
            phase = self.phases[index]
            assert isinstance(phase, Bound)
            revealed = journalled(phase.accept(self.commits.values()))
            self.phases[index] = revealed
            reveals[index] = revealed.message
        return reveals

    def close(self) -> tuple[CloseKind, tuple[int, ...]]:
        return choose_close(self.context, self.receipts)

    def check_reveals(self, survivors: tuple[int, ...], reveals: Mapping[int, bytes]) -> list[CheckedReveal]:
        commitments = share_commitments(
            self.context, (envelope for deposit in self.epoch.deposits.values() for envelope in deposit.envelopes)
        )
        return [
            verify_reveal(self.context, survivors, message, sender=index, commitments=commitments)
            for index, message in reveals.items()
        ]

    def open(self, survivors: tuple[int, ...], reveals: Mapping[int, bytes]) -> list[Words]:
        """The unmasked sum, chunk by chunk, last chunk first, as chunks do not depend on each other."""
        checked = self.check_reveals(survivors, reveals)
        unmasking = open_masks(self.context, self.epoch.roster, survivors, checked, self.epoch.readies)
        total = self.sum(survivors)
        unmasker = unmasking.unmasker()
        for at in reversed(range(len(total))):
            unmasker.add_into(at, total[at])
        unmasking.check_tail(total[-1])
        return total

    def sum(self, survivors: Iterable[int]) -> list[Words]:
        layout = self.context.layout
        total = [np.zeros(layout.words_in(at), dtype=np.uint64) for at in range(layout.chunks)]
        for index in survivors:
            for at, words in enumerate(self.uploads[index]):
                add_into(total[at], words)
        return total


def random_chunks(context: RoundContext, seed: int) -> list[Words]:
    """Words over the whole ring, with a count word of 1 and the greatest weight: the sum must come out to the bit."""
    layout = context.layout
    generator = np.random.default_rng(seed)
    chunks = [generator.integers(0, 2**64, layout.words_in(at), dtype=np.uint64) for at in range(layout.chunks)]
    chunks[-1][:2] = (2**30, 1)
    return chunks


def plain_sum(chunks: Iterable[list[Words]]) -> list[Words]:
    listed = list(chunks)
    total = [words.copy() for words in listed[0]]
    for one in listed[1:]:
        for at, words in enumerate(one):
            total[at] += words
    return total
