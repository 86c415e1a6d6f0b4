"""What a run, a round, a key epoch and a participation are: frozen values, and nothing that acts on them.

`version` counts the changes of a row; the store refuses to write over a version that it has not been shown.
All times are aware UTC datetimes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from common.secagg import ClosedGroup
from common.states import RoundKind, RoundState, RunState


class EpochState(Enum):
    ADVERTISING = "advertising"
    SHARING = "sharing"
    CONFIRMING = "confirming"
    READY = "ready"
    CLOSED = "closed"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (EpochState.CLOSED, EpochState.FAILED)

    @property
    def is_setting_up(self) -> bool:
        return self in (EpochState.ADVERTISING, EpochState.SHARING, EpochState.CONFIRMING)


class ParticipationState(Enum):
    PRESENT = "present"
    PREPARED = "prepared"
    UPLOADED = "uploaded"
    COMMITTED = "committed"
    REVEALED = "revealed"
    FAILED = "failed"
    DROPPED = "dropped"

    @property
    def is_out(self) -> bool:
        return self in (ParticipationState.FAILED, ParticipationState.DROPPED)


class AdapterState(Enum):
    CANDIDATE = "candidate"
    ACCEPTED = "accepted"
    SET_ASIDE = "set_aside"


class ParticipantState(Enum):
    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Run:
    """One training effort. `plan` is canonical JSON, and `plan_digest` its SHA-256 in hex."""

    name: str
    state: RunState
    plan: bytes
    plan_digest: str
    charter_digest: str
    accepted_adapter: str
    candidate_adapter: str | None
    created_at: datetime
    ended_at: datetime | None = None
    latest_round: int = 0
    latest_epoch: int = 0
    rounds_succeeded: int = 0
    failed_in_a_row: int = 0
    accepted_loss: float | None = None
    reason: str = ""
    message: str = ""
    version: int = 1

    @property
    def newest_adapter(self) -> str:
        """Digest of the adapter from which the next round trains."""
        return self.candidate_adapter or self.accepted_adapter


@dataclass(frozen=True, slots=True)
class RunMember:
    """A participant's standing in a run: joined, or declined with a reason."""

    run: str
    participant: str
    joined: bool
    updated_at: datetime
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """One round. `start` is the start message of its masked part, `survivors` the set that was bound.

    closed_groups: metric groups that are not summed, as its cohort has too few contributors; no figure of them exists.
    """

    run: str
    number: int
    kind: RoundKind
    state: RoundState
    base_adapter: str
    instruction_set: str
    created_at: datetime
    phase_started_at: datetime
    deadline: datetime
    epoch: int = 0
    cohort: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    start: bytes = field(default=b"", repr=False)
    result_adapter: str | None = None
    metrics: tuple[tuple[str, float], ...] = ()
    closed_groups: tuple[ClosedGroup, ...] = ()
    reason: str = ""
    message: str = ""
    ended_at: datetime | None = None
    version: int = 1

    @property
    def name(self) -> str:
        return f"runs/{self.run}/rounds/{self.number}"


@dataclass(frozen=True, slots=True)
class KeyEpoch:
    """Masking keys for rounds first_round .. first_round + rounds - 1."""

    run: str
    number: int
    state: EpochState
    first_round: int
    rounds: int
    phase_started_at: datetime
    deadline: datetime
    members: tuple[str, ...] = ()
    usable: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    version: int = 1

    def covers(self, round_number: int) -> bool:
        return self.first_round <= round_number < self.first_round + self.rounds


@dataclass(frozen=True, slots=True)
class Participation:
    """One participant in one round: how far it is, what it says it is doing, or why it is out."""

    run: str
    round: int
    participant: str
    state: ParticipationState
    updated_at: datetime
    reason: str = ""
    message: str = ""
    activity: str = ""
    progress_done: int = 0
    progress_total: int = 0
    uploaded_bytes: int = 0
    upload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published global adapter. Its files lie in the blob store under its digest."""

    digest: str
    run: str
    round: int
    state: AdapterState
    size_bytes: int
    parent: str | None
    manifest: bytes
    manifest_signature: bytes
    created_at: datetime
    heldout_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Participant:
    """An enrolled organisation."""

    name: str
    state: ParticipantState
    enrolled_at: datetime
    identity_key_sha256: str
    certificate_serial: str
    certificate_expires_at: datetime
    last_seen_at: datetime | None = None
    software_version: str = ""
    revoke_reason: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that the coordinator's own CA has issued to a participant. `chain` is PEM, leaf first."""

    serial: str
    participant: str
    identity_key_sha256: str
    chain: str
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A single-use invitation; only the digest of its secret is kept. Its state follows from its times."""

    name: str
    participant: str
    secret_sha256: str = field(repr=False)
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    used_certificate: str | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class WebToken:
    """A secret that opens the web page, for reading alone; only its digest is kept. `creator` is an actor's name."""

    name: str
    label: str
    creator: str
    secret_sha256: str = field(repr=False)
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A masked update on its way: chunks before `durable_chunks` are on durable storage.

    `chunk_digests` is the concatenation of the SHA-256 of every chunk, as the header declared it.
    """

    run: str
    round: int
    participant: str
    chunk_count: int
    total_bytes: int
    chunk_digests: bytes = field(repr=False)
    durable_chunks: int = 0
    is_complete: bool = False
    receipt: bytes = field(default=b"", repr=False)


class MessageKind(Enum):
    """What a stored protocol message is; the first four belong to a key epoch, the others to a round.

    The last three were refused and are kept as proof against their senders.
    """

    ROSTER = "roster"
    ADVERTISEMENT = "advertisement"
    DEPOSIT = "deposit"
    CONFIRMATION = "confirmation"
    COMMIT = "commit"
    REVEAL = "reveal"
    SECOND_RECEIPT = "second_receipt"
    SECOND_COMMIT = "second_commit"
    FALSE_REVEAL = "false_reveal"


@dataclass(frozen=True, slots=True)
class ProtocolMessage:
    """One participant's message of the masking protocol, byte for byte. `number` is an epoch's or a round's.

    Of a deposit `body` is the SHA-256: what it is made of is kept as `ShareEnvelope`s.
    """

    run: str
    kind: MessageKind
    number: int
    sender: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShareEnvelope:
    """What a deposit holds for one of its holders: a signed envelope, byte for byte. owner, holder: participants."""

    run: str
    epoch: int
    holder: str
    owner: str
    envelope: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the audit log. `details` is canonical JSON; `chain_digest` covers this line and the one before."""

    sequence: int
    time: datetime
    actor: str
    action: str
    subject: str
    details: str
    chain_digest: str
