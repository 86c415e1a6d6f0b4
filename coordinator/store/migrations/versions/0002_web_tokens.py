"""Tokens that open the web page, and a way to one resource's audit events

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

# Frozen here: a later change of `column_types` must not change what this step has made.
TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "web_tokens",
        sa.Column("name", TEXT, autoincrement=False, nullable=False, comment="id of the token"),
        sa.Column("label", TEXT, nullable=False, comment="whom it is for"),
        sa.Column("creator", TEXT, nullable=False, comment="who made it"),
        sa.Column(
            "secret_sha256", TEXT, nullable=False, comment="SHA-256 of the secret, hex; the secret itself is nowhere"
        ),
        sa.Column("created_at", TIME, nullable=False, comment="UTC"),
        sa.Column("expires_at", TIME, nullable=False, comment="UTC"),
        sa.Column("revoked_at", TIME, nullable=True, comment="UTC; NULL unless revoked"),
        sa.PrimaryKeyConstraint("name", name="pk_web_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_web_tokens_secret_sha256"),
    )
    op.create_index("ix_web_tokens_created_at_name", "web_tokens", ["created_at", "name"], unique=False)
    op.create_index("ix_audit_events_subject_sequence", "audit_events", ["subject", "sequence"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_audit_events_subject_sequence", table_name="audit_events")
    op.drop_index("ix_web_tokens_created_at_name", table_name="web_tokens")
    op.drop_table("web_tokens")
