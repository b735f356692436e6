"""Answers by Idempotency-Key, webhooks' attempts and secrets, and the indexes by which the sweeper finds its work."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON(none_as_null=True)
SOURCED = sa.text("source_key IS NOT NULL")
DELETED = sa.text("deleted_at IS NOT NULL")


def upgrade() -> None:
    """Add them."""
    op.create_table(
        "replies",
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("request_hash", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_replies_owner_id_users")),
        sa.PrimaryKeyConstraint("owner_id", "idempotency_key", name=op.f("pk_replies")),
    )
    op.create_index(op.f("ix_replies_created_at"), "replies", ["created_at"])
    op.add_column("frames", sa.Column("webhook_secret", sa.String(64), nullable=True))
    op.add_column("runs", sa.Column("webhook_attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("webhook_next_at", MOMENT, nullable=True))
    op.add_column("runs", sa.Column("webhook_error", sa.String(255), nullable=True))
    op.create_index(op.f("ix_runs_finished_at"), "runs", ["finished_at"])
    op.create_index(op.f("ix_sources_object_key"), "sources", ["object_key"])
    op.create_index(
        op.f("ix_run_items_source_key"),
        "run_items",
        ["source_key"],
        sqlite_where=SOURCED,
        postgresql_where=SOURCED,
    )
    op.create_index(
        "ix_outputs_deleted", "outputs", ["frame_id", "object_key"], sqlite_where=DELETED, postgresql_where=DELETED
    )


def downgrade() -> None:
    """Take them away; answers that could be given again are lost."""
    op.drop_index("ix_outputs_deleted", "outputs")
    op.drop_index(op.f("ix_run_items_source_key"), "run_items")
    op.drop_index(op.f("ix_sources_object_key"), "sources")
    op.drop_index(op.f("ix_runs_finished_at"), "runs")
    for column in ("webhook_error", "webhook_next_at", "webhook_attempts"):
        op.drop_column("runs", column)
    op.drop_column("frames", "webhook_secret")
    op.drop_table("replies")
