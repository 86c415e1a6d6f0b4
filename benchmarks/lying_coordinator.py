"""Sites with their real masking code, and a coordinator in the same process that tells each of them what it likes.

Every site is the product's own `MaskingDesk` over a journal, a spool and update files on disk; charter, certificates,
plan and messages are real. Only the network is not: the coordinator's answers come from a client object instead of
gRPC, because the lies are in the answers and not in the transport. Knows nothing of which lies there are.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.federation import made_up_model
from common.adapters import FlatVector
from common.assignments import AdvertiseKeys, CloseRound, ConfirmShares, DepositShares, UploadUpdate
from common.certificates import to_pem
from common.charter import CHARTER_FORM, USUAL_BOUNDS, Charter, CharterMember
from common.clock import SystemClock
from common.identifiers import FederationId, ParticipantId, ParticipantIdentity
from common.masking import key_epoch, model_hash, pinned_members
from common.plan import Plan
from common.secagg import (
    Deposit,
    EpochKeys,
    Masking,
    Ready,
    Roster,
    RoundContext,
    RoundKind,
    Start,
    Words,
    assemble_roster,
    check_deposit,
    check_ready,
    envelopes_for,
    identity_signer,
    make_start,
    spki_sha256,
)
from common.states import RoundKind as Kind
from coordinator.pki import CertificateAuthority, new_authority
from coordinator.planning import PlanSettings, RunIdentity, make_plan
from participant.client import CoordinatorClient, Evidence, UploadState
from participant.journal import EpochEntry, Journal, RoundEntry, RoundPhase
from participant.masking import Identity, MaskingDesk, RunTerms
from participant.spool import chunk_sizes
from participant.update import CLIPPED_ELEMENTS, Contribution, Update, open_update

RUN: Final = "run"
FEDERATION: Final = FederationId("demonstration")
EPOCH: Final = 1
ROUND: Final = 1
ADAPTER: Final = "00" * 32
MEBIBYTES: Final = 0.25
ELEMENT_CLIP: Final = 0.02
UPDATE_SCALE: Final = 0.004
RECORDS: Final = 1000
MOST_UPLOAD_BYTES: Final = 1 << 30

Answer = Callable[[], Evidence]


@dataclass
class Heard:
    """Everything that the coordinator has been sent."""

    advertisements: dict[str, bytes] = field(default_factory=dict, repr=False)
    deposits: dict[str, bytes] = field(default_factory=dict, repr=False)
    readies: dict[str, bytes] = field(default_factory=dict, repr=False)
    uploads: dict[str, bytes] = field(default_factory=dict, repr=False)
    receipts: dict[str, bytes] = field(default_factory=dict, repr=False)
    commits: dict[str, bytes] = field(default_factory=dict, repr=False)
    reveals: dict[str, bytes] = field(default_factory=dict, repr=False)


class LyingClient(CoordinatorClient):
    """One site's line to the coordinator: takes down what the site says, and answers what it was told to answer."""

    def __init__(self, site: str, heard: Heard) -> None:
        self.site = site
        self.heard = heard
        self.roster_answer = b""
        self.shares_answer: tuple[bytes, ...] = ()
        self.evidence_answer: Evidence | None = None

    def advertise_keys(self, run: str, epoch: int, advertisement: bytes) -> None:
        self.heard.advertisements[self.site] = advertisement

    def roster(self, run: str, epoch: int) -> bytes:
        return self.roster_answer

    def deposit_shares(self, run: str, epoch: int, deposit: bytes) -> None:
        self.heard.deposits[self.site] = deposit

    def shares(self, run: str, epoch: int) -> tuple[bytes, ...]:
        return self.shares_answer

    def confirm_shares(self, run: str, epoch: int, confirmation: bytes) -> None:
        self.heard.readies[self.site] = confirmation

    def upload_state(self, run: str, round_: int) -> UploadState:
        return UploadState(0, is_complete=False)

    def upload(
        self,
        run: str,
        round_: int,
        *,
        spool: Path,
        chunk_sizes: Sequence[int],
        chunk_digests: bytes,
        first_chunk: int,
        receipt: bytes,
    ) -> None:
        self.heard.uploads[self.site] = spool.read_bytes()
        self.heard.receipts[self.site] = receipt

    def evidence(self, run: str, round_: int, *, for_reveal: bool, wait_seconds: int) -> Evidence:
        if self.evidence_answer is None:
            raise RuntimeError("the script has no evidence for this site")
        found = self.evidence_answer
        # Commits count only where a site asks for them; before that it is to commit itself.
        return found if for_reveal else Evidence(found.survivors, found.is_fast, found.receipts, ())

    def commit_survivors(self, run: str, round_: int, commit: bytes) -> None:
        self.heard.commits[self.site] = commit

    def reveal_shares(self, run: str, round_: int, reveal: bytes) -> None:
        self.heard.reveals[self.site] = reveal


@dataclass(frozen=True)
class Member:
    """An organisation: the desk that it trusts, its journal, its true update, and its line to the coordinator."""

    name: str
    desk: MaskingDesk
    journal: Journal
    client: LyingClient
    update: FlatVector = field(repr=False)
    open_update: Callable[[], Update] = field(repr=False)

    def close(self) -> None:
        self.journal.close()

    def keys(self) -> EpochKeys:
        """Its own keys, from its journal: for a member that works with the coordinator, and for the control."""
        return EpochKeys.from_bytes(self._epoch().state)

    def _epoch(self) -> EpochEntry:
        entry = self.journal.epoch(RUN, EPOCH)
        if entry is None:
            raise RuntimeError(f"{self.name} has no keys")
        return entry

    def phase(self) -> RoundPhase:
        """How far it is in the round, as its journal says."""
        entry = self.journal.round(RUN, ROUND)
        if entry is None:
            raise RuntimeError(f"{self.name} has not prepared the round")
        return entry.phase


class World:
    """A federation of `names` below a folder, set up as far as its certificates and its charter."""

    def __init__(self, folder: Path, names: Sequence[str], *, seed: int) -> None:
        self.names = tuple(sorted(names))
        self.heard = Heard()
        self.clock = SystemClock()
        now = self.clock.now()
        # Each organisation has a CA of its own; the coordinator's, which it may use as it likes, is none of them.
        self.coordinator_authority = new_authority(FEDERATION, now=now)
        self._identities = {name: issue(new_authority(FEDERATION, now=now), name) for name in self.names}
        self.charter = self._charter()
        self.plan = make_plan(
            PlanSettings(
                base_model=made_up_model(MEBIBYTES), element_clip=ELEMENT_CLIP, rounds_per_epoch=4, weight_cap=RECORDS
            ),
            identity=RunIdentity(RUN, secrets.token_hex(32), FEDERATION, self.charter.coordinator_public_key),
            charter=self.charter,
            most_upload_bytes=MOST_UPLOAD_BYTES,
        )
        content = self.plan.to_bytes()
        self.terms = RunTerms(Plan.from_bytes(content), hashlib.sha256(content).digest(), self.charter)
        self.epoch = key_epoch(self.plan, self.terms.plan_digest, number=EPOCH, first_round=ROUND)
        self.members = {name: self._member(folder / name, name, seed + at) for at, name in enumerate(self.names)}

    def close(self) -> None:
        for member in self.members.values():
            member.close()

    # --- making it ------------------------------------------------------------------------------------------------

    def _charter(self) -> Charter:
        charter = Charter(
            federation=FEDERATION,
            members=tuple(
                CharterMember(
                    name,
                    ParticipantIdentity(FEDERATION, ParticipantId(name)).uri,
                    (issued.authority_pem,),
                    issued.key_sha256,
                )
                for name, issued in self._identities.items()
            ),
            coordinator_public_key=secrets.token_hex(32),
            least_cohort=3,
            colluders=None,
            base_model_digests=(),
            bounds=USUAL_BOUNDS,
            form=CHARTER_FORM,
        )
        charter.check()
        return charter

    def _member(self, folder: Path, name: str, seed: int) -> Member:
        folder.mkdir(parents=True)
        layout = self.plan.layout()
        generator = np.random.default_rng(seed)
        delta = (generator.standard_normal(layout.parameters) * UPDATE_SCALE).astype(np.float32)
        base, local = folder / "base.safetensors", folder / "local.safetensors"
        base.write_bytes(layout.header() + np.zeros(layout.parameters, dtype=np.float32).tobytes())
        local.write_bytes(layout.header() + delta.tobytes())
        journal, client = Journal(folder / "journal.sqlite"), LyingClient(name, self.heard)
        desk = MaskingDesk(
            client=lambda: client,
            identity=lambda: self._identities[name].identity,
            journal=journal,
            spools=folder / "spool",
            metric_groups=lambda: frozenset(),
            clock=self.clock,
            random_bytes=secrets.token_bytes,
        )
        most_norm = self.plan.masking.max_update_norm
        return Member(name, desk, journal, client, delta, lambda: open_update(local, base, layout, max_norm=most_norm))

    # --- the coordinator's steps, honest unless told otherwise ------------------------------------------------------

    def advertise(self) -> None:
        for member in self.members.values():
            member.desk.advertise(AdvertiseKeys(RUN, EPOCH, ROUND), self.terms)

    def honest_roster(self) -> Roster:
        verifier = pinned_members(self.charter, now=self.clock.now())
        return assemble_roster(self.epoch, self.heard.advertisements.values(), verifier)

    def deposit(self, roster: bytes, names: Iterable[str] | None = None) -> None:
        """Show a roster to sites and have them deal their secrets to it. Raises what a site refuses it with."""
        for name in names or self.names:
            member = self.members[name]
            member.client.roster_answer = roster
            member.desk.deposit(DepositShares(RUN, EPOCH), self.terms)

    def deposits(self, roster: Roster) -> list[Deposit]:
        found = self.heard.deposits
        return [
            check_deposit(self.epoch, roster.members, found[name], sender=roster.members.index_of(name))
            for name in self.names
        ]

    def confirm(self, roster: Roster) -> None:
        deposits = self.deposits(roster)
        for name, member in self.members.items():
            member.client.shares_answer = envelopes_for(roster.members, deposits, roster.members.index_of(name))
            member.desk.confirm(ConfirmShares(RUN, EPOCH))

    def readies(self, roster: Roster) -> dict[int, Ready]:
        found = {roster.members.index_of(name): message for name, message in self.heard.readies.items()}
        return {i: check_ready(self.epoch, roster.members, message, sender=i) for i, message in found.items()}

    def set_up(self) -> Roster:
        """Keys for the epoch, with no lie in it."""
        self.advertise()
        roster = self.honest_roster()
        self.deposit(roster.message)
        self.confirm(roster)
        return roster

    @property
    def model_hash(self) -> bytes:
        return model_hash(self.plan, adapter=ADAPTER, instruction_set=self.plan.instruction_set)

    def prepare(self, round_: int = ROUND) -> None:
        """Every site has trained: its journal says so, as the workbench writes it."""
        now = self.clock.now()
        for member in self.members.values():
            member.journal.put_round(
                RoundEntry(RUN, round_, Kind.TRAIN.value, RoundPhase.PREPARED, ADAPTER, self.model_hash, now, now)
            )

    def context(self, roster: Roster, round_: int = ROUND) -> RoundContext:
        """The round with everybody in it."""
        return make_start(
            self.epoch,
            roster.members,
            round_number=round_,
            kind=RoundKind.TRAINING,
            cohort=range(len(roster.members)),
            model_hash=self.model_hash,
        )

    def upload(self, start: Start, names: Iterable[str] | None = None) -> None:
        """Have sites mask and send their updates. Raises what a site refuses it with."""
        for name in names or self.names:
            member = self.members[name]
            member.desk.upload(
                UploadUpdate(RUN, start.round, EPOCH, start.encode(), self.clock.now()),
                self.terms,
                Contribution(RECORDS, self._metrics()),
                member.open_update,
                lambda total, resumed: None,
            )

    def _metrics(self) -> dict[str, float]:
        return {name: 0.0 for name in self.plan.masking.metric_words if name != CLIPPED_ELEMENTS}

    def evidence(self, survivors: Sequence[str], *, is_fast: bool, commits: Iterable[bytes] = ()) -> Evidence:
        """Evidence with the true receipts of those it names."""
        receipts = tuple(self.heard.receipts[name] for name in survivors)
        return Evidence(tuple(survivors), is_fast, receipts, tuple(commits))

    def ask_to_close(self, name: str, evidence: Evidence, start: Start) -> bool:
        """True: the site has revealed. Raises what a site refuses it with."""
        member = self.members[name]
        member.client.evidence_answer = evidence
        return member.desk.close(CloseRound(RUN, start.round, EPOCH, start.encode()))

    # --- what is in an upload ---------------------------------------------------------------------------------------

    def upload_of(self, name: str, context: RoundContext) -> list[Words]:
        """The masked update as the coordinator holds it, chunk by chunk."""
        content, chunks, at = self.heard.uploads[name], [], 0
        for size in chunk_sizes(context.layout):
            chunks.append(np.frombuffer(content[at : at + size], dtype="<u8").copy())
            at += size
        return chunks

    def masking_of(self, name: str, start: Start) -> Masking:
        """What the site itself knows of its masks, before it masks: asked for the control alone."""
        _, masking = self.members[name].keys().start(start.encode(), model_hash=self.model_hash)
        return masking


@dataclass(frozen=True)
class Issued:
    """An organisation's identity, the CA that issued it and the digest of its key."""

    identity: Identity
    authority_pem: str
    key_sha256: str


def issue(authority: CertificateAuthority, name: str) -> Issued:
    """A key and a certificate with an organisation's name, by any CA: also by one that has no right to the name."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_participant(key.public_key(), ParticipantId(name), now=SystemClock().now())
    chain = (issued.certificate.public_bytes(Encoding.DER),)
    return Issued(
        Identity(name, chain, identity_signer(key)),
        to_pem([authority.certificate]),
        spki_sha256(issued.certificate).hex(),
    )
