"""Runs, rounds, key epochs, adapters, identities, charters, the audit log and leases

Revision: 0001, the first
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

# Frozen here: a later change of `column_types` must not change what this step has made.
TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "answers",
        sa.Column("caller", TEXT, autoincrement=False, nullable=False, comment="who asked"),
        sa.Column(
            "request_id", TEXT, autoincrement=False, nullable=False, comment="the caller's own id of the request"
        ),
        sa.Column(
            "answer", sa.LargeBinary(), nullable=False, comment="what it was answered with; a repeat gets the same"
        ),
        sa.Column("answered_at", TIME, nullable=False, comment="UTC"),
        sa.PrimaryKeyConstraint("caller", "request_id", name="pk_answers"),
    )
    op.create_table(
        "audit_events",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False, comment="1, 2, ... without gaps"),
        sa.Column("time", TIME, nullable=False, comment="UTC"),
        sa.Column("actor", TEXT, nullable=False, comment="who did it: an operator, a participant or the coordinator"),
        sa.Column("action", TEXT, nullable=False, comment="what was done"),
        sa.Column("subject", TEXT, nullable=False, comment="to what it was done"),
        sa.Column("details", TEXT, nullable=False, comment="canonical JSON"),
        sa.Column(
            "chain_digest",
            TEXT,
            nullable=False,
            comment="SHA-256 over the digest before and this line, hex (coordinator/store/audit.py)",
        ),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_events"),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False, comment="always 1"),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="audit_events.sequence of the last event"),
        sa.Column("chain_digest", TEXT, nullable=False, comment="audit_events.chain_digest of the last event"),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.create_table(
        "charters",
        sa.Column("digest", TEXT, autoincrement=False, nullable=False, comment="SHA-256 of the charter, hex"),
        sa.Column("charter", sa.LargeBinary(), nullable=False, comment="the charter, byte for byte"),
        sa.Column(
            "publication", sa.BigInteger(), nullable=False, comment="counts publications; the highest is in force"
        ),
        sa.Column("published_at", TIME, nullable=False, comment="UTC"),
        sa.PrimaryKeyConstraint("digest", name="pk_charters"),
        sa.UniqueConstraint("publication", name="uq_charters_publication"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("name", TEXT, autoincrement=False, nullable=False, comment="id of the token"),
        sa.Column("participant", TEXT, nullable=False, comment="the only name that it may enrol"),
        sa.Column(
            "secret_sha256", TEXT, nullable=False, comment="SHA-256 of the secret, hex; the secret itself is nowhere"
        ),
        sa.Column("created_at", TIME, nullable=False, comment="UTC"),
        sa.Column("expires_at", TIME, nullable=False, comment="UTC"),
        sa.Column("used_at", TIME, nullable=True, comment="UTC; NULL unless used"),
        sa.Column(
            "used_certificate", TEXT, nullable=True, comment="serial number of the certificate that it was used for"
        ),
        sa.Column("revoked_at", TIME, nullable=True, comment="UTC; NULL unless revoked"),
        sa.PrimaryKeyConstraint("name", name="pk_join_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_join_tokens_secret_sha256"),
    )
    op.create_index("ix_join_tokens_created_at_name", "join_tokens", ["created_at", "name"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", TEXT, autoincrement=False, nullable=False, comment="the piece of work"),
        sa.Column("holder", TEXT, nullable=False, comment="the process that may do it"),
        sa.Column("until", TIME, nullable=False, comment="UTC; after this anybody may take it"),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "participants",
        sa.Column(
            "name", TEXT, autoincrement=False, nullable=False, comment="id of the participant, unique in the federation"
        ),
        sa.Column("state", TEXT, nullable=False, comment="active or revoked"),
        sa.Column("enrolled_at", TIME, nullable=False, comment="UTC"),
        sa.Column("identity_key_sha256", TEXT, nullable=False, comment="SHA-256 of the identity key, hex"),
        sa.Column("certificate_serial", TEXT, nullable=False, comment="serial number of its newest certificate"),
        sa.Column("certificate_expires_at", TIME, nullable=False, comment="UTC; end of its newest certificate"),
        sa.Column("last_seen_at", TIME, nullable=True, comment="UTC; its last call"),
        sa.Column("software_version", TEXT, nullable=False, comment="what it last said it runs"),
        sa.Column("revoke_reason", TEXT, nullable=False, comment="the operator's words, empty while active"),
        sa.PrimaryKeyConstraint("name", name="pk_participants"),
    )
    op.create_table(
        "runs",
        sa.Column("name", TEXT, autoincrement=False, nullable=False, comment="id of the run, unique in the federation"),
        sa.Column("state", TEXT, nullable=False, comment="created, running, paused, succeeded, failed or cancelled"),
        sa.Column(
            "plan", sa.LargeBinary(), nullable=False, comment="the plan as canonical JSON, byte for byte; never changes"
        ),
        sa.Column("plan_digest", TEXT, nullable=False, comment="SHA-256 of plan, hex"),
        sa.Column(
            "charter_digest",
            TEXT,
            nullable=False,
            comment="SHA-256 of the charter under which the run was created, hex",
        ),
        sa.Column("accepted_adapter", TEXT, nullable=False, comment="digest of the last adapter that passed the gate"),
        sa.Column(
            "candidate_adapter", TEXT, nullable=True, comment="digest of an adapter that no round has evaluated yet"
        ),
        sa.Column("created_at", TIME, nullable=False, comment="UTC"),
        sa.Column("ended_at", TIME, nullable=True, comment="UTC; NULL while the run is open"),
        sa.Column(
            "latest_round", sa.BigInteger(), nullable=False, comment="number of the newest round, 0 before the first"
        ),
        sa.Column(
            "latest_epoch",
            sa.BigInteger(),
            nullable=False,
            comment="number of the newest key epoch, 0 before the first",
        ),
        sa.Column("rounds_succeeded", sa.BigInteger(), nullable=False, comment="rounds that ended well"),
        sa.Column(
            "failed_in_a_row",
            sa.BigInteger(),
            nullable=False,
            comment="rounds that failed since the last one that ended well",
        ),
        sa.Column(
            "accepted_loss", sa.Double(), nullable=True, comment="held-out loss of the accepted adapter, once measured"
        ),
        sa.Column("reason", TEXT, nullable=False, comment="stable reason of a failure or pause, else empty"),
        sa.Column("message", TEXT, nullable=False, comment="the same for a person"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="counts the changes of this row"),
        sa.PrimaryKeyConstraint("name", name="pk_runs"),
    )
    op.create_index("ix_runs_created_at_name", "runs", ["created_at", "name"], unique=False)
    op.create_table(
        "adapters",
        sa.Column(
            "digest", TEXT, autoincrement=False, nullable=False, comment="SHA-256 of adapter_model.safetensors, hex"
        ),
        sa.Column("run", TEXT, nullable=False, comment="runs.name"),
        sa.Column(
            "round", sa.BigInteger(), nullable=False, comment="round that published it, 0 for the initial adapter"
        ),
        sa.Column("state", TEXT, nullable=False, comment="candidate, accepted or set_aside"),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, comment="bytes of adapter_model.safetensors"),
        sa.Column("parent", TEXT, nullable=True, comment="digest of the adapter before it"),
        sa.Column("manifest", sa.LargeBinary(), nullable=False, comment="the signed manifest, byte for byte"),
        sa.Column(
            "manifest_signature",
            sa.LargeBinary(),
            nullable=False,
            comment="Ed25519 signature of manifest by the coordinator's signing key",
        ),
        sa.Column("created_at", TIME, nullable=False, comment="UTC"),
        sa.Column(
            "heldout_loss",
            sa.Double(),
            nullable=True,
            comment="mean held-out loss over the participants, once measured",
        ),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_adapters_runs", initially="DEFERRED", deferrable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_adapters"),
        sa.UniqueConstraint("run", "round", name="uq_adapters_run_round"),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", TEXT, autoincrement=False, nullable=False, comment="serial number"),
        sa.Column("participant", TEXT, nullable=False, comment="participants.name"),
        sa.Column("identity_key_sha256", TEXT, nullable=False, comment="SHA-256 of the identity key, hex"),
        sa.Column("chain", TEXT, nullable=False, comment="PEM, leaf first"),
        sa.Column("issued_at", TIME, nullable=False, comment="UTC"),
        sa.Column("expires_at", TIME, nullable=False, comment="UTC"),
        sa.Column("revoked_at", TIME, nullable=True, comment="UTC; NULL unless revoked"),
        sa.ForeignKeyConstraint(
            ["participant"],
            ["participants.name"],
            name="fk_certificates_participants",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("serial", name="pk_certificates"),
    )
    op.create_index("ix_certificates_participant", "certificates", ["participant"], unique=False)
    op.create_table(
        "key_epochs",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="1, 2, ... within the run"),
        sa.Column("state", TEXT, nullable=False, comment="advertising, sharing, confirming, ready, closed or failed"),
        sa.Column("first_round", sa.BigInteger(), nullable=False, comment="first round that these keys mask"),
        sa.Column("rounds", sa.BigInteger(), nullable=False, comment="how many rounds they mask"),
        sa.Column("phase_started_at", TIME, nullable=False, comment="UTC; when the present state began"),
        sa.Column("deadline", TIME, nullable=False, comment="UTC; when the present phase's window ends"),
        sa.Column("members", TEXT, nullable=False, comment="JSON array: participants whose keys are on the roster"),
        sa.Column("usable", TEXT, nullable=False, comment="JSON array: members whose shares all arrived"),
        sa.Column("reason", TEXT, nullable=False, comment="stable reason of a failure, else empty"),
        sa.Column("message", TEXT, nullable=False, comment="the same for a person"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="counts the changes of this row"),
        sa.ForeignKeyConstraint(
            ["run"], ["runs.name"], name="fk_key_epochs_runs", initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("run", "number", name="pk_key_epochs"),
    )
    op.create_table(
        "protocol_messages",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column(
            "kind",
            TEXT,
            autoincrement=False,
            nullable=False,
            comment="roster, advertisement, deposit, confirmation (of an epoch), commit, reveal (of a round), and kept "
            "as proof of a lie in a round: second_receipt, second_commit, false_reveal",
        ),
        sa.Column(
            "number",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="key_epochs.number or rounds.number, by kind",
        ),
        sa.Column("sender", TEXT, autoincrement=False, nullable=False, comment="name of the participant"),
        sa.Column(
            "body", sa.LargeBinary(), nullable=False, comment="the message, byte for byte; of a deposit its SHA-256"
        ),
        sa.ForeignKeyConstraint(
            ["run"], ["runs.name"], name="fk_protocol_messages_runs", initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("run", "kind", "number", "sender", name="pk_protocol_messages"),
    )
    op.create_table(
        "share_envelopes",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False, comment="key_epochs.number"),
        sa.Column(
            "holder", TEXT, autoincrement=False, nullable=False, comment="name of the participant that can open it"
        ),
        sa.Column(
            "owner",
            TEXT,
            autoincrement=False,
            nullable=False,
            comment="name of the participant that has sealed and signed it",
        ),
        sa.Column("envelope", sa.LargeBinary(), nullable=False, comment="the signed envelope, byte for byte"),
        sa.ForeignKeyConstraint(
            ["run"], ["runs.name"], name="fk_share_envelopes_runs", initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("run", "epoch", "holder", "owner", name="pk_share_envelopes"),
    )
    op.create_table(
        "rounds",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False, comment="1, 2, ... within the run"),
        sa.Column("kind", TEXT, nullable=False, comment="train, or evaluate (metrics alone)"),
        sa.Column(
            "state",
            TEXT,
            nullable=False,
            comment="forming, training, collecting, unmasking, aggregating, succeeded, failed or cancelled",
        ),
        sa.Column("base_adapter", TEXT, nullable=False, comment="digest of the adapter from which participants train"),
        sa.Column("instruction_set", TEXT, nullable=False, comment="templates and domain weights of this round"),
        sa.Column("created_at", TIME, nullable=False, comment="UTC"),
        sa.Column("phase_started_at", TIME, nullable=False, comment="UTC; when the present state began"),
        sa.Column("deadline", TIME, nullable=False, comment="UTC; when the present phase's window ends"),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            nullable=False,
            comment="key epoch whose keys mask this round, 0 before one is chosen",
        ),
        sa.Column(
            "cohort", TEXT, nullable=False, comment="JSON array: participants with an update ready when training closed"
        ),
        sa.Column(
            "survivors",
            TEXT,
            nullable=False,
            comment="JSON array: participants whose masked update is in the sum; bound once",
        ),
        sa.Column("start", sa.LargeBinary(), nullable=False, comment="signed start message of the masked part"),
        sa.Column("result_adapter", TEXT, nullable=True, comment="digest of the adapter that this round published"),
        sa.Column("metrics", TEXT, nullable=False, comment="JSON array of [name, figure] over the survivors"),
        sa.Column(
            "closed_groups",
            TEXT,
            nullable=False,
            comment="JSON array of [metric group that is not summed, its contributors in the cohort, what it takes]",
        ),
        sa.Column("reason", TEXT, nullable=False, comment="stable reason of a failure, else empty"),
        sa.Column("message", TEXT, nullable=False, comment="the same for a person"),
        sa.Column("ended_at", TIME, nullable=True, comment="UTC; NULL while the round is open"),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="counts the changes of this row"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_rounds_runs", initially="DEFERRED", deferrable=True),
        sa.PrimaryKeyConstraint("run", "number", name="pk_rounds"),
    )
    op.create_table(
        "run_members",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column("participant", TEXT, autoincrement=False, nullable=False, comment="name of the participant"),
        sa.Column("joined", sa.Boolean(), nullable=False, comment="true: joined; false: declined"),
        sa.Column("updated_at", TIME, nullable=False, comment="UTC"),
        sa.Column("reason", TEXT, nullable=False, comment="why it declined, else empty"),
        sa.Column("message", TEXT, nullable=False, comment="the same for a person"),
        sa.ForeignKeyConstraint(
            ["run"], ["runs.name"], name="fk_run_members_runs", initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("run", "participant", name="pk_run_members"),
    )
    op.create_table(
        "participations",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False, comment="rounds.number"),
        sa.Column("participant", TEXT, autoincrement=False, nullable=False, comment="name of the participant"),
        sa.Column(
            "state", TEXT, nullable=False, comment="present, prepared, uploaded, committed, revealed, failed or dropped"
        ),
        sa.Column("updated_at", TIME, nullable=False, comment="UTC"),
        sa.Column("reason", TEXT, nullable=False, comment="why it is out, else empty"),
        sa.Column("message", TEXT, nullable=False, comment="the same for a person"),
        sa.Column("activity", TEXT, nullable=False, comment="what the participant says it is doing"),
        sa.Column(
            "progress_done", sa.BigInteger(), nullable=False, comment="of progress_total, in the participant's own unit"
        ),
        sa.Column("progress_total", sa.BigInteger(), nullable=False, comment="0 if unknown"),
        sa.Column(
            "uploaded_bytes", sa.BigInteger(), nullable=False, comment="bytes of the masked update on durable storage"
        ),
        sa.Column(
            "upload_bytes",
            sa.BigInteger(),
            nullable=False,
            comment="bytes of the whole masked update, 0 before it is declared",
        ),
        sa.ForeignKeyConstraint(
            ["run", "round"],
            ["rounds.run", "rounds.number"],
            name="fk_participations_rounds",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("run", "round", "participant", name="pk_participations"),
    )
    op.create_table(
        "uploads",
        sa.Column("run", TEXT, autoincrement=False, nullable=False, comment="runs.name"),
        sa.Column("round", sa.BigInteger(), autoincrement=False, nullable=False, comment="rounds.number"),
        sa.Column("participant", TEXT, autoincrement=False, nullable=False, comment="name of the participant"),
        sa.Column("chunk_count", sa.BigInteger(), nullable=False, comment="chunks of the masked update"),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False, comment="bytes of the masked update"),
        sa.Column(
            "chunk_digests",
            sa.LargeBinary(),
            nullable=False,
            comment="SHA-256 of every chunk, one after the other, as the header declared them",
        ),
        sa.Column(
            "durable_chunks",
            sa.BigInteger(),
            nullable=False,
            comment="chunks before this one are on durable storage and were acknowledged",
        ),
        sa.Column(
            "is_complete", sa.Boolean(), nullable=False, comment="all chunks are durable and their digests verified"
        ),
        sa.Column(
            "receipt", sa.LargeBinary(), nullable=False, comment="signed receipt, empty before the upload is complete"
        ),
        sa.ForeignKeyConstraint(
            ["run", "round"],
            ["rounds.run", "rounds.number"],
            name="fk_uploads_rounds",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("run", "round", "participant", name="pk_uploads"),
    )


def downgrade() -> None:
    op.drop_table("uploads")
    op.drop_table("participations")
    op.drop_table("run_members")
    op.drop_table("rounds")
    op.drop_table("share_envelopes")
    op.drop_table("protocol_messages")
    op.drop_table("key_epochs")
    op.drop_index("ix_certificates_participant", table_name="certificates")
    op.drop_table("certificates")
    op.drop_table("adapters")
    op.drop_index("ix_runs_created_at_name", table_name="runs")
    op.drop_table("runs")
    op.drop_table("participants")
    op.drop_table("leases")
    op.drop_index("ix_join_tokens_created_at_name", table_name="join_tokens")
    op.drop_table("join_tokens")
    op.drop_table("charters")
    op.drop_table("audit_head")
    op.drop_table("audit_events")
    op.drop_table("answers")
