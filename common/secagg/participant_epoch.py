"""A participant's key set-up: Advertising -> Dealt -> EpochKeys, and from there one Masking for each round.

Each phase is a frozen value. A step returns the next phase; what leaves the site is that phase's `message`, so a
caller journals the phase (`to_bytes`) first and sends afterwards, and a resend is byte for byte the same.
Knows nothing of time, files and the network. The only randomness not passed in is HPKE's, inside `deal`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import MalformedMessage, OutOfTurn, ProtocolViolation
from common.secagg import hashing, sealing, shamir
from common.secagg.encoding import Kind, Reader, Writer
from common.secagg.graph import pair
from common.secagg.hashing import KEY_BYTES
from common.secagg.identity import IdentitySigner, MemberVerifier
from common.secagg.messages import NONCE_BYTES, Advertisement, Deposit, Ready, SealedShare, Signed, Start
from common.secagg.participant_round import Masking
from common.secagg.plan import KeyEpoch
from common.secagg.prg import keystream_by_counter
from common.secagg.roster import Members, check_roster, graph_of, sign_advertisement
from common.secagg.round_context import RoundContext
from common.secagg.shamir import COEFFICIENT_BYTES, SHARE_BYTES

RandomBytes = Callable[[int], bytes]

ROUND_SHARES_BYTES: Final = 2 * SHARE_BYTES
"""K-share and b-share of one owner for one round."""


@dataclass(frozen=True, slots=True)
class _Secrets:
    """The two secrets of every round, from the first chain key."""

    self_keys: tuple[bytes, ...] = field(repr=False)
    escrow_keys: tuple[bytes, ...] = field(repr=False)
    chains: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def of(cls, epoch: KeyEpoch, chain: bytes) -> Self:
        run_id = epoch.plan.run_id
        chains = [chain]
        for _ in range(len(epoch.rounds) - 1):
            chains.append(hashing.next_chain(chains[-1], run_id))
        rounds = tuple(zip(chains, epoch.rounds, strict=True))
        return cls(
            self_keys=tuple(hashing.self_key(link, run_id, round_) for link, round_ in rounds),
            escrow_keys=tuple(hashing.escrow_key(link, run_id, round_) for link, round_ in rounds),
            chains=tuple(chains),
        )


def begin_epoch(
    epoch: KeyEpoch,
    *,
    org_id: str,
    certificate_chain: Iterable[bytes],
    identity_signer: IdentitySigner,
    metric_groups: Collection[str],
    random_bytes: RandomBytes,
) -> Advertising:
    """Make an epoch's keys and the Advertise message. certificate_chain: DER, leaf first.

    metric_groups: those that this site has figures for; of no other does anything leave it while the epoch lasts.
    Names that the plan has not are left out.
    Bonawitz et al. 2017, round 0 (AdvertiseKeys), for all rounds of the epoch at once.
    """
    master, signing_seed = random_bytes(KEY_BYTES), random_bytes(KEY_BYTES)
    kem_seed, nonce = random_bytes(sealing.SEED_BYTES), random_bytes(NONCE_BYTES)
    epoch_hash = epoch.hash
    secrets = _Secrets.of(epoch, hashing.first_chain(master, epoch_hash))
    advertisement = Advertisement(
        epoch_hash=epoch_hash,
        org_id=org_id,
        certificate_chain=tuple(certificate_chain),
        nonce=nonce,
        signing_key=_public_signing_key(signing_seed),
        kem_key=sealing.public_key(kem_seed),
        self_commitments=tuple(
            hashing.commit_self_key(epoch_hash, org_id, round_, key)
            for round_, key in zip(epoch.rounds, secrets.self_keys, strict=True)
        ),
        escrow_commitments=tuple(
            hashing.commit_escrow_key(epoch_hash, org_id, round_, key)
            for round_, key in zip(epoch.rounds, secrets.escrow_keys, strict=True)
        ),
        metric_groups=epoch.plan.groups_named(metric_groups),
    )
    signed = sign_advertisement(advertisement, identity_signer)
    return Advertising(epoch, org_id, master, signing_seed, kem_seed, signed.encode())


def _public_signing_key(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Advertising:
    """Keys are made; `message` advertises them. Waits for the roster."""

    epoch: KeyEpoch
    org_id: str
    master: bytes = field(repr=False)
    signing_seed: bytes = field(repr=False)
    kem_seed: bytes = field(repr=False)
    message: bytes = field(repr=False)

    def deal(self, roster_message: bytes, verifier: MemberVerifier) -> Dealt:
        """Check the roster, share this member's secrets with their holders, seal one box for each.

        Once journalled this must not be done again: with another roster it would deal the same secrets twice.
        Raises ProtocolViolation or PlanInvalid for a bad roster, also when our own keys in it are not ours.
        Bonawitz et al. 2017, round 1 (ShareKeys).
        """
        roster = check_roster(self.epoch, roster_message, verifier)
        members = roster.members
        index = members.index_of(self.org_id)
        own = Signed.decode(self.message).body
        if roster.advertisements[index].encode() != own:
            raise ProtocolViolation("the key roster has other keys for us than we advertised")
        chain = hashing.first_chain(self.master, self.epoch.hash)
        secrets = _Secrets.of(self.epoch, chain)
        dealt = _deal_shares(self.epoch, members, index, secrets)
        pair_chains: dict[int, bytes] = {}
        envelopes = []
        for holder in graph_of(self.epoch, members).holders(index):
            seed = b""
            if index < holder:
                seed = hashing.pair_seed(self.master, members.roster_hash, index, holder)
                pair_chains[holder] = hashing.first_pair_chain(seed, members.roster_hash, index, holder)
            sealed = SealedShare(
                roster_hash=members.roster_hash,
                owner=index,
                holder=holder,
                commitments=tuple(
                    _commitment(members.roster_hash, index, holder, round_, shares)
                    for round_, shares in zip(self.epoch.rounds, dealt[holder], strict=True)
                ),
                box=sealing.seal_share(
                    roster.advertisements[holder].kem_key,
                    seed + b"".join(dealt[holder]),
                    roster_hash=members.roster_hash,
                    owner=index,
                    holder=holder,
                ),
            )
            envelopes.append(Signed.by_epoch_key(self.signing_seed, "share", sealed.encode()).encode())
        message = Deposit(members.roster_hash, index, tuple(envelopes)).encode()
        return Dealt(self.epoch, members, index, self.signing_seed, self.kem_seed, chain, pair_chains, message)

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_ADVERTISING)
        writer.blob(self.epoch.encode())
        writer.text(self.org_id)
        writer.fixed(self.master, KEY_BYTES)
        writer.fixed(self.signing_seed, KEY_BYTES)
        writer.fixed(self.kem_seed, sealing.SEED_BYTES)
        writer.blob(self.message)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_ADVERTISING)
        state = cls(
            KeyEpoch.decode(reader.blob()),
            reader.text(),
            reader.fixed(KEY_BYTES),
            reader.fixed(KEY_BYTES),
            reader.fixed(sealing.SEED_BYTES),
            reader.blob(),
        )
        reader.done()
        return state


def _deal_shares(epoch: KeyEpoch, members: Members, index: int, secrets: _Secrets) -> Mapping[int, tuple[bytes, ...]]:
    """For each holder, for each round, K-share || b-share."""
    threshold = epoch.plan.thresholds(len(members)).shares
    mine = graph_of(epoch, members).holders(index)
    points = tuple(holder + 1 for holder in mine)
    rows: dict[int, list[bytes]] = {holder: [] for holder in mine}
    size = (threshold - 1) * COEFFICIENT_BYTES
    for at, round_ in enumerate(epoch.rounds):
        chain = secrets.chains[at]
        escrow_polynomial = hashing.escrow_polynomial_key(chain, members.roster_hash, round_)
        self_polynomial = hashing.self_polynomial_key(chain, members.roster_hash, round_)
        escrow = shamir.split(secrets.escrow_keys[at], points, keystream_by_counter(escrow_polynomial, 0, size))
        own = shamir.split(secrets.self_keys[at], points, keystream_by_counter(self_polynomial, 0, size))
        for holder, escrow_share, self_share in zip(mine, escrow, own, strict=True):
            rows[holder].append(escrow_share + self_share)
    return {holder: tuple(row) for holder, row in rows.items()}


def _commitment(roster_hash: bytes, owner: int, holder: int, round_: int, shares: bytes) -> bytes:
    return hashing.commit_shares(
        hashing.commit_escrow_share(roster_hash, owner, holder, round_, shares[:SHARE_BYTES]),
        hashing.commit_self_share(roster_hash, owner, holder, round_, shares[SHARE_BYTES:]),
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """An envelope that was not taken: whose it claims to be (None if that cannot be told) and why."""

    org_id: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Dealt:
    """Shares are dealt; `message` deposits them, and is never made again. `master` is forgotten here."""

    epoch: KeyEpoch
    members: Members
    index: int
    signing_seed: bytes = field(repr=False)
    kem_seed: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    pair_chains: Mapping[int, bytes] = field(repr=False)
    message: bytes = field(repr=False)

    def confirm(self, envelopes: Iterable[bytes]) -> tuple[EpochKeys, tuple[Refusal, ...]]:
        """Open the shares sealed to us; escrow our pair keys; say what we hold.

        envelopes: signed SealedShare messages as the coordinator forwards them. One that is damaged, forged,
        misdirected or inconsistent is refused and its owner not held: it is not an error of the step. Our own
        envelope is taken from our own deposit. A neighbour that is not held can never be in a cohort with us.
        """
        opened: dict[int, bytes] = {}
        pair_chains = dict(self.pair_chains)
        refusals = []
        owners = graph_of(self.epoch, self.members).holders(self.index)
        own = [Deposit.decode(self.message).envelopes[owners.index(self.index)]]
        for envelope in (*own, *envelopes):
            owner: int | None = None
            try:
                sealed = self._authentic(envelope, owners)
                owner = sealed.owner
                if owner in opened:
                    continue
                seed, shares = self._open(sealed)
            except ProtocolViolation as error:
                name = None if owner is None else self.members.org_ids[owner]
                refusals.append(Refusal(name, error.message))
                continue
            opened[owner] = shares
            if owner < self.index:
                pair_chains[owner] = hashing.first_pair_chain(seed, self.members.roster_hash, owner, self.index)
        held = {other: chain for other, chain in pair_chains.items() if other in opened}
        message = self._ready(tuple(sorted(opened)), held)
        keys = EpochKeys(
            epoch=self.epoch,
            members=self.members,
            index=self.index,
            next_round=self.epoch.first_round,
            signing_seed=self.signing_seed,
            chain=self.chain,
            pair_chains=held,
            shares=opened,
            message=message,
        )
        return keys, tuple(refusals)

    def _authentic(self, envelope: bytes, owners: Collection[int]) -> SealedShare:
        signed = Signed.decode(envelope)
        sealed = SealedShare.decode(signed.body)
        if sealed.roster_hash != self.members.roster_hash or sealed.holder != self.index:
            raise ProtocolViolation("a sealed share is for another roster or another holder")
        if sealed.owner not in owners:
            raise ProtocolViolation(f"a sealed share is from index {sealed.owner}, whose shares we do not hold")
        # HPKE does not say who sealed: without this check the coordinator could deal in anyone's name, choose the
        # pair seed itself and take the pair's mask off.
        self.members.check_signature(signed, "share", sealed.owner)
        return sealed

    def _open(self, sealed: SealedShare) -> tuple[bytes, bytes]:
        plaintext = sealing.open_share(
            self.kem_seed,
            sealed.box,
            roster_hash=sealed.roster_hash,
            owner=sealed.owner,
            holder=self.index,
        )
        seed_bytes = KEY_BYTES if sealed.owner < self.index else 0
        seed, shares = plaintext[:seed_bytes], plaintext[seed_bytes:]
        rounds = self.epoch.rounds
        if len(shares) != ROUND_SHARES_BYTES * len(rounds) or len(sealed.commitments) != len(rounds):
            raise ProtocolViolation("a sealed share has the wrong number of rounds")
        for at, round_ in enumerate(rounds):
            both = shares[at * ROUND_SHARES_BYTES : (at + 1) * ROUND_SHARES_BYTES]
            shamir.check_share(both[:SHARE_BYTES])
            shamir.check_share(both[SHARE_BYTES:])
            if _commitment(sealed.roster_hash, sealed.owner, self.index, round_, both) != sealed.commitments[at]:
                raise ProtocolViolation(f"a sealed share for round {round_} is not the one its owner committed to")
        return seed, shares

    def _ready(self, opened: tuple[int, ...], pair_chains: Mapping[int, bytes]) -> bytes:
        run_id, roster_hash = self.epoch.plan.run_id, self.members.roster_hash
        secrets = _Secrets.of(self.epoch, self.chain)
        partners = [other for other in opened if other != self.index]
        chains = {other: pair_chains[other] for other in partners}
        escrows, commitments = [], []
        for at, round_ in enumerate(self.epoch.rounds):
            keys = [hashing.pair_key(chains[other], run_id, round_) for other in partners]
            chains = {other: hashing.next_chain(chain, run_id) for other, chain in chains.items()}
            escrows.append(
                sealing.seal_escrow(
                    secrets.escrow_keys[at], b"".join(keys), roster_hash=roster_hash, owner=self.index, round_=round_
                )
            )
            commitments.append(
                tuple(
                    hashing.commit_pair_key(roster_hash, *pair(self.index, other), round_, key)
                    for other, key in zip(partners, keys, strict=True)
                )
            )
        ready = Ready(roster_hash, self.index, opened, len(self.members), tuple(escrows), tuple(commitments))
        return Signed.by_epoch_key(self.signing_seed, "ready", ready.encode()).encode()

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_DEALT)
        writer.blob(self.epoch.encode())
        writer.blob(self.members.encode())
        writer.u32(self.index)
        writer.fixed(self.signing_seed, KEY_BYTES)
        writer.fixed(self.kem_seed, sealing.SEED_BYTES)
        writer.fixed(self.chain, KEY_BYTES)
        _write_map(writer, self.pair_chains)
        writer.blob(self.message)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_DEALT)
        state = cls(
            KeyEpoch.decode(reader.blob()),
            Members.decode(reader.blob()),
            reader.u32(),
            reader.fixed(KEY_BYTES),
            reader.fixed(sealing.SEED_BYTES),
            reader.fixed(KEY_BYTES),
            reader.by_index(reader.blob),
            reader.blob(),
        )
        reader.done()
        return state


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """Keys for the rounds from `next_round` on; `message` is Ready. Neither `master` nor the KEM key exist any more.

    `start` takes a round's keys out: the EpochKeys it returns cannot start that round again.
    shares: of each owner held, its own included, K-share || b-share for each round from next_round on.
    """

    epoch: KeyEpoch
    members: Members
    index: int
    next_round: int
    signing_seed: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    pair_chains: Mapping[int, bytes] = field(repr=False)
    shares: Mapping[int, bytes] = field(repr=False)
    message: bytes = field(repr=False)

    def without_message(self) -> EpochKeys:
        """The same keys once Ready is acknowledged: its escrows need not be kept here."""
        return replace(self, message=b"")

    def skip_to(self, round_: int) -> EpochKeys:
        """Forget the keys of every round before `round_`; it may be one past the epoch's last.

        Raises OutOfTurn for a round whose keys are forgotten already.
        """
        if not self.next_round <= round_ <= self.epoch.rounds.stop:
            raise OutOfTurn(f"keys are for rounds {self.next_round} to {self.epoch.rounds.stop - 1}, not {round_}")
        chain, pair_chains, run_id = self.chain, dict(self.pair_chains), self.epoch.plan.run_id
        for _ in range(round_ - self.next_round):
            chain = hashing.next_chain(chain, run_id)
            pair_chains = {other: hashing.next_chain(link, run_id) for other, link in pair_chains.items()}
        gone = (round_ - self.next_round) * ROUND_SHARES_BYTES
        return replace(
            self,
            next_round=round_,
            chain=chain,
            pair_chains=pair_chains,
            shares={owner: shares[gone:] for owner, shares in self.shares.items()},
        )

    def start(
        self, start_message: bytes, *, model_hash: bytes, spent_models: Collection[bytes] = ()
    ) -> tuple[EpochKeys, Masking]:
        """Check Start and take the round's keys out. Journal both results in one transaction.

        model_hash: digest of the model that this site has received, checked and trained from. spent_models: digests
        on which this site will not open another sum (the journal's: models whose round it has revealed in).
        Raises OutOfTurn for a round that has passed here, ProtocolViolation for everything else that is wrong.
        """
        start = Start.decode(start_message)
        if start.round < self.next_round:
            raise OutOfTurn(f"round {start.round} has passed at this site; its keys are gone")
        context = RoundContext.of(self.epoch, self.members, start)
        if start.model_hash != model_hash:
            raise ProtocolViolation("the round starts from another model than this site received")
        if model_hash in spent_models:
            raise ProtocolViolation("a sum was already opened on this model; a second one could single a member out")
        if self.index not in start.cohort:
            raise ProtocolViolation("the round's cohort does not hold this site")
        masked_with = graph_of(self.epoch, self.members).holders(self.index)
        missing = [other for other in start.cohort if other in masked_with and other not in self.shares]
        if missing:
            names = ", ".join(self.members.names(missing))
            raise ProtocolViolation(f"the round's cohort holds neighbours whose shares this site has not: {names}")
        keys = self.skip_to(start.round)
        return keys.skip_to(start.round + 1), keys._masking(context)

    def _masking(self, context: RoundContext) -> Masking:
        run_id, round_, cohort = self.epoch.plan.run_id, self.next_round, set(context.start.cohort)
        owners = [other for other in graph_of(self.epoch, self.members).holders(self.index) if other in cohort]
        return Masking(
            context=context,
            index=self.index,
            signing_seed=self.signing_seed,
            self_seed=hashing.self_mask_seed(hashing.self_key(self.chain, run_id, round_), context.hash, self.index),
            pair_seeds={
                other: hashing.pair_mask_seed(
                    hashing.pair_key(self.pair_chains[other], run_id, round_), context.hash, *pair(self.index, other)
                )
                for other in owners
                if other != self.index
            },
            shares={owner: self.shares[owner][:ROUND_SHARES_BYTES] for owner in owners},
            group_seeds={
                other: hashing.group_mask_seed(
                    hashing.group_key(self.pair_chains[other], run_id, round_), context.hash, *pair(self.index, other)
                )
                for other in context.narrow_with(self.index)
            },
        )

    def to_bytes(self) -> bytes:
        writer = Writer(Kind.STATE_EPOCH_KEYS)
        writer.blob(self.epoch.encode())
        writer.blob(self.members.encode())
        writer.u32(self.index)
        writer.u32(self.next_round)
        writer.fixed(self.signing_seed, KEY_BYTES)
        writer.fixed(self.chain, KEY_BYTES)
        _write_map(writer, self.pair_chains)
        _write_map(writer, self.shares)
        writer.blob(self.message)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, Kind.STATE_EPOCH_KEYS)
        state = cls(
            KeyEpoch.decode(reader.blob()),
            Members.decode(reader.blob()),
            reader.u32(),
            reader.u32(),
            reader.fixed(KEY_BYTES),
            reader.fixed(KEY_BYTES),
            reader.by_index(reader.blob),
            reader.by_index(reader.blob),
            reader.blob(),
        )
        reader.done()
        if not state.epoch.first_round <= state.next_round <= state.epoch.rounds.stop:
            raise MalformedMessage("journalled epoch keys name a round outside their epoch")
        return state


def _write_map(writer: Writer, values: Mapping[int, bytes]) -> None:
    writer.u32(len(values))
    for key in sorted(values):
        writer.u32(key)
        writer.blob(values[key])
