"""The tables, as this version of the code expects them. `migrations` brings a database there; a test compares both.

A table that keeps a row type of `coordinator.rounds.model` has the type's fields as its columns, in the same order.
Foreign keys are checked when a transaction commits, so rows may be written in any order within one.
"""

from __future__ import annotations

from typing import Final, TypeVar

from sqlalchemy import Boolean, Column, ForeignKeyConstraint, Index, LargeBinary, MetaData, Table, UniqueConstraint
from sqlalchemy.types import TypeEngine

from common.states import RoundKind, RoundState, RunState
from coordinator.rounds.model import (
    AdapterState,
    EpochState,
    MessageKind,
    ParticipantState,
    ParticipationState,
)
from coordinator.store.column_types import ClosedGroups, Figures, Finite, Names, OneOf, Text, UtcTime, Whole

Value = TypeVar("Value")

METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _key(name: str, type_: TypeEngine[Value], comment: str) -> Column[Value]:
    return Column(name, type_, primary_key=True, autoincrement=False, comment=comment)


def _must(name: str, type_: TypeEngine[Value], comment: str) -> Column[Value]:
    return Column(name, type_, nullable=False, comment=comment)


def _may(name: str, type_: TypeEngine[Value], comment: str) -> Column[Value]:
    return Column(name, type_, nullable=True, comment=comment)


def _refers(columns: list[str], to: list[str]) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(columns, to, deferrable=True, initially="DEFERRED")


RUNS: Final = Table(
    "runs",
    METADATA,
    _key("name", Text(), "id of the run, unique in the federation"),
    _must("state", OneOf(RunState), "created, running, paused, succeeded, failed or cancelled"),
    _must("plan", LargeBinary(), "the plan as canonical JSON, byte for byte; never changes"),
    _must("plan_digest", Text(), "SHA-256 of plan, hex"),
    _must("charter_digest", Text(), "SHA-256 of the charter under which the run was created, hex"),
    _must("accepted_adapter", Text(), "digest of the last adapter that passed the gate"),
    _may("candidate_adapter", Text(), "digest of an adapter that no round has evaluated yet"),
    _must("created_at", UtcTime(), "UTC"),
    _may("ended_at", UtcTime(), "UTC; NULL while the run is open"),
    _must("latest_round", Whole(), "number of the newest round, 0 before the first"),
    _must("latest_epoch", Whole(), "number of the newest key epoch, 0 before the first"),
    _must("rounds_succeeded", Whole(), "rounds that ended well"),
    _must("failed_in_a_row", Whole(), "rounds that failed since the last one that ended well"),
    _may("accepted_loss", Finite(), "held-out loss of the accepted adapter, once measured"),
    _must("reason", Text(), "stable reason of a failure or pause, else empty"),
    _must("message", Text(), "the same for a person"),
    _must("version", Whole(), "counts the changes of this row"),
    Index(None, "created_at", "name"),
)

RUN_MEMBERS: Final = Table(
    "run_members",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key("participant", Text(), "name of the participant"),
    _must("joined", Boolean(), "true: joined; false: declined"),
    _must("updated_at", UtcTime(), "UTC"),
    _must("reason", Text(), "why it declined, else empty"),
    _must("message", Text(), "the same for a person"),
    _refers(["run"], ["runs.name"]),
)

ROUNDS: Final = Table(
    "rounds",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key("number", Whole(), "1, 2, ... within the run"),
    _must("kind", OneOf(RoundKind), "train, or evaluate (metrics alone)"),
    _must(
        "state",
        OneOf(RoundState),
        "forming, training, collecting, unmasking, aggregating, succeeded, failed or cancelled",
    ),
    _must("base_adapter", Text(), "digest of the adapter from which participants train"),
    _must("instruction_set", Text(), "templates and domain weights of this round"),
    _must("created_at", UtcTime(), "UTC"),
    _must("phase_started_at", UtcTime(), "UTC; when the present state began"),
    _must("deadline", UtcTime(), "UTC; when the present phase's window ends"),
    _must("epoch", Whole(), "key epoch whose keys mask this round, 0 before one is chosen"),
    _must("cohort", Names(), "JSON array: participants with an update ready when training closed"),
    _must("survivors", Names(), "JSON array: participants whose masked update is in the sum; bound once"),
    _must("start", LargeBinary(), "signed start message of the masked part"),
    _may("result_adapter", Text(), "digest of the adapter that this round published"),
    _must("metrics", Figures(), "JSON array of [name, figure] over the survivors"),
    _must(
        "closed_groups",
        ClosedGroups(),
        "JSON array of [metric group that is not summed, its contributors in the cohort, what it takes]",
    ),
    _must("reason", Text(), "stable reason of a failure, else empty"),
    _must("message", Text(), "the same for a person"),
    _may("ended_at", UtcTime(), "UTC; NULL while the round is open"),
    _must("version", Whole(), "counts the changes of this row"),
    _refers(["run"], ["runs.name"]),
)

PARTICIPATIONS: Final = Table(
    "participations",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key("round", Whole(), "rounds.number"),
    _key("participant", Text(), "name of the participant"),
    _must(
        "state",
        OneOf(ParticipationState),
        "present, prepared, uploaded, committed, revealed, failed or dropped",
    ),
    _must("updated_at", UtcTime(), "UTC"),
    _must("reason", Text(), "why it is out, else empty"),
    _must("message", Text(), "the same for a person"),
    _must("activity", Text(), "what the participant says it is doing"),
    _must("progress_done", Whole(), "of progress_total, in the participant's own unit"),
    _must("progress_total", Whole(), "0 if unknown"),
    _must("uploaded_bytes", Whole(), "bytes of the masked update on durable storage"),
    _must("upload_bytes", Whole(), "bytes of the whole masked update, 0 before it is declared"),
    _refers(["run", "round"], ["rounds.run", "rounds.number"]),
)

UPLOADS: Final = Table(
    "uploads",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key("round", Whole(), "rounds.number"),
    _key("participant", Text(), "name of the participant"),
    _must("chunk_count", Whole(), "chunks of the masked update"),
    _must("total_bytes", Whole(), "bytes of the masked update"),
    _must("chunk_digests", LargeBinary(), "SHA-256 of every chunk, one after the other, as the header declared them"),
    _must("durable_chunks", Whole(), "chunks before this one are on durable storage and were acknowledged"),
    _must("is_complete", Boolean(), "all chunks are durable and their digests verified"),
    _must("receipt", LargeBinary(), "signed receipt, empty before the upload is complete"),
    _refers(["run", "round"], ["rounds.run", "rounds.number"]),
)

KEY_EPOCHS: Final = Table(
    "key_epochs",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key("number", Whole(), "1, 2, ... within the run"),
    _must("state", OneOf(EpochState), "advertising, sharing, confirming, ready, closed or failed"),
    _must("first_round", Whole(), "first round that these keys mask"),
    _must("rounds", Whole(), "how many rounds they mask"),
    _must("phase_started_at", UtcTime(), "UTC; when the present state began"),
    _must("deadline", UtcTime(), "UTC; when the present phase's window ends"),
    _must("members", Names(), "JSON array: participants whose keys are on the roster"),
    _must("usable", Names(), "JSON array: members whose shares all arrived"),
    _must("reason", Text(), "stable reason of a failure, else empty"),
    _must("message", Text(), "the same for a person"),
    _must("version", Whole(), "counts the changes of this row"),
    _refers(["run"], ["runs.name"]),
)

PROTOCOL_MESSAGES: Final = Table(
    "protocol_messages",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key(
        "kind",
        OneOf(MessageKind),
        "roster, advertisement, deposit, confirmation (of an epoch), commit, reveal (of a round), and kept as proof of "
        "a lie in a round: second_receipt, second_commit, false_reveal",
    ),
    _key("number", Whole(), "key_epochs.number or rounds.number, by kind"),
    _key("sender", Text(), "name of the participant"),
    _must("body", LargeBinary(), "the message, byte for byte; of a deposit its SHA-256"),
    _refers(["run"], ["runs.name"]),
)

# The parts of deposits, each where the one for whom it was sealed finds it: nobody reads everybody's deposit.
SHARE_ENVELOPES: Final = Table(
    "share_envelopes",
    METADATA,
    _key("run", Text(), "runs.name"),
    _key("epoch", Whole(), "key_epochs.number"),
    _key("holder", Text(), "name of the participant that can open it"),
    _key("owner", Text(), "name of the participant that has sealed and signed it"),
    _must("envelope", LargeBinary(), "the signed envelope, byte for byte"),
    _refers(["run"], ["runs.name"]),
)

ADAPTERS: Final = Table(
    "adapters",
    METADATA,
    _key("digest", Text(), "SHA-256 of adapter_model.safetensors, hex"),
    _must("run", Text(), "runs.name"),
    _must("round", Whole(), "round that published it, 0 for the initial adapter"),
    _must("state", OneOf(AdapterState), "candidate, accepted or set_aside"),
    _must("size_bytes", Whole(), "bytes of adapter_model.safetensors"),
    _may("parent", Text(), "digest of the adapter before it"),
    _must("manifest", LargeBinary(), "the signed manifest, byte for byte"),
    _must("manifest_signature", LargeBinary(), "Ed25519 signature of manifest by the coordinator's signing key"),
    _must("created_at", UtcTime(), "UTC"),
    _may("heldout_loss", Finite(), "mean held-out loss over the participants, once measured"),
    UniqueConstraint("run", "round"),
    _refers(["run"], ["runs.name"]),
)

PARTICIPANTS: Final = Table(
    "participants",
    METADATA,
    _key("name", Text(), "id of the participant, unique in the federation"),
    _must("state", OneOf(ParticipantState), "active or revoked"),
    _must("enrolled_at", UtcTime(), "UTC"),
    _must("identity_key_sha256", Text(), "SHA-256 of the identity key, hex"),
    _must("certificate_serial", Text(), "serial number of its newest certificate"),
    _must("certificate_expires_at", UtcTime(), "UTC; end of its newest certificate"),
    _may("last_seen_at", UtcTime(), "UTC; its last call"),
    _must("software_version", Text(), "what it last said it runs"),
    _must("revoke_reason", Text(), "the operator's words, empty while active"),
)

CERTIFICATES: Final = Table(
    "certificates",
    METADATA,
    _key("serial", Text(), "serial number"),
    _must("participant", Text(), "participants.name"),
    _must("identity_key_sha256", Text(), "SHA-256 of the identity key, hex"),
    _must("chain", Text(), "PEM, leaf first"),
    _must("issued_at", UtcTime(), "UTC"),
    _must("expires_at", UtcTime(), "UTC"),
    _may("revoked_at", UtcTime(), "UTC; NULL unless revoked"),
    _refers(["participant"], ["participants.name"]),
    Index(None, "participant"),
)

JOIN_TOKENS: Final = Table(
    "join_tokens",
    METADATA,
    _key("name", Text(), "id of the token"),
    _must("participant", Text(), "the only name that it may enrol"),
    _must("secret_sha256", Text(), "SHA-256 of the secret, hex; the secret itself is nowhere"),
    _must("created_at", UtcTime(), "UTC"),
    _must("expires_at", UtcTime(), "UTC"),
    _may("used_at", UtcTime(), "UTC; NULL unless used"),
    _may("used_certificate", Text(), "serial number of the certificate that it was used for"),
    _may("revoked_at", UtcTime(), "UTC; NULL unless revoked"),
    UniqueConstraint("secret_sha256"),
    Index(None, "created_at", "name"),
)

WEB_TOKENS: Final = Table(
    "web_tokens",
    METADATA,
    _key("name", Text(), "id of the token"),
    _must("label", Text(), "whom it is for"),
    _must("creator", Text(), "who made it"),
    _must("secret_sha256", Text(), "SHA-256 of the secret, hex; the secret itself is nowhere"),
    _must("created_at", UtcTime(), "UTC"),
    _must("expires_at", UtcTime(), "UTC"),
    _may("revoked_at", UtcTime(), "UTC; NULL unless revoked"),
    UniqueConstraint("secret_sha256"),
    Index(None, "created_at", "name"),
)

CHARTERS: Final = Table(
    "charters",
    METADATA,
    _key("digest", Text(), "SHA-256 of the charter, hex"),
    _must("charter", LargeBinary(), "the charter, byte for byte"),
    _must("publication", Whole(), "counts publications; the highest is in force"),
    _must("published_at", UtcTime(), "UTC"),
    UniqueConstraint("publication"),
)

ANSWERS: Final = Table(
    "answers",
    METADATA,
    _key("caller", Text(), "who asked"),
    _key("request_id", Text(), "the caller's own id of the request"),
    _must("answer", LargeBinary(), "what it was answered with; a repeat gets the same"),
    _must("answered_at", UtcTime(), "UTC"),
)

AUDIT_EVENTS: Final = Table(
    "audit_events",
    METADATA,
    _key("sequence", Whole(), "1, 2, ... without gaps"),
    _must("time", UtcTime(), "UTC"),
    _must("actor", Text(), "who did it: an operator, a participant or the coordinator"),
    _must("action", Text(), "what was done"),
    _must("subject", Text(), "to what it was done"),
    _must("details", Text(), "canonical JSON"),
    _must("chain_digest", Text(), "SHA-256 over the digest before and this line, hex (coordinator/store/audit.py)"),
    Index(None, "subject", "sequence"),
)

# One row. Without it, nobody could tell that the log's last lines were taken away.
AUDIT_HEAD: Final = Table(
    "audit_head",
    METADATA,
    _key("id", Whole(), "always 1"),
    _must("sequence", Whole(), "audit_events.sequence of the last event"),
    _must("chain_digest", Text(), "audit_events.chain_digest of the last event"),
)

LEASES: Final = Table(
    "leases",
    METADATA,
    _key("name", Text(), "the piece of work"),
    _must("holder", Text(), "the process that may do it"),
    _must("until", UtcTime(), "UTC; after this anybody may take it"),
)
