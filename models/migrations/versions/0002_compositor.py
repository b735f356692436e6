"""The compositor's tables: assets, frames, runs with their chunks and items, outputs, sources, leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DOCUMENT = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Add what feeds and frames need."""
    _leases()
    _assets()
    _sources()
    _frames()
    _runs()
    _run_chunks()
    _run_items()
    _outputs()


def downgrade() -> None:
    """Back to pictures alone; frames and runs are lost."""
    for table in ("outputs", "run_items", "run_chunks", "runs", "frames", "sources", "assets", "leases"):
        op.drop_table(table)


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )


def _assets() -> None:
    op.create_table(
        "assets",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("object_key", sa.String(255), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("deleted_at", MOMENT, nullable=True),
        sa.CheckConstraint("kind IN ('font', 'badge')", name=op.f("ck_assets_kind")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_assets_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assets")),
    )
    op.create_index(op.f("ix_assets_owner_id"), "assets", ["owner_id"])


def _sources() -> None:
    op.create_table(
        "sources",
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("url_sha256", sa.String(64), nullable=False),
        sa.Column("url", sa.String(8192), nullable=False),
        sa.Column("etag", sa.String(512), nullable=True),
        sa.Column("last_modified", sa.String(64), nullable=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("object_key", sa.String(255), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("checked_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_sources_owner_id_users")),
        sa.PrimaryKeyConstraint("owner_id", "url_sha256", name=op.f("pk_sources")),
    )


def _frames() -> None:
    op.create_table(
        "frames",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("picture_key", sa.String(255), nullable=False),
        sa.Column("picture_sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("transparent", sa.Boolean(), nullable=False),
        sa.Column("design", DOCUMENT, nullable=False),
        sa.Column("feed_url", sa.String(8192), nullable=True),
        sa.Column("feed_key", sa.String(255), nullable=True),
        sa.Column("feed_mode", sa.String(16), nullable=False),
        sa.Column("feed_token", sa.String(40), nullable=True),
        sa.Column("refresh_seconds", sa.Integer(), nullable=True),
        sa.Column("next_refresh_at", MOMENT, nullable=True),
        sa.Column("webhook_url", sa.String(2048), nullable=True),
        sa.Column("published_run_id", sa.Integer(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("deleted_at", MOMENT, nullable=True),
        sa.CheckConstraint("feed_mode IN ('replace', 'additional')", name=op.f("ck_frames_feed_mode")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_frames_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_frames")),
        sa.UniqueConstraint("feed_token", name=op.f("uq_frames_feed_token")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_frames_next_refresh_at"), "frames", ["next_refresh_at"])
    op.create_index(op.f("ix_frames_owner_id"), "frames", ["owner_id"])


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("frame_id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("snapshot", DOCUMENT, nullable=False),
        sa.Column("feed_url", sa.String(8192), nullable=True),
        sa.Column("feed_key", sa.String(255), nullable=True),
        sa.Column("feed_sha256", sa.String(64), nullable=True),
        sa.Column("partial", sa.Boolean(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=True),
        sa.Column("output_feed_key", sa.String(255), nullable=True),
        sa.Column("output_csv_key", sa.String(255), nullable=True),
        sa.Column("error_code", sa.String(64), nullable=True),
        sa.Column("error", sa.String(1024), nullable=True),
        sa.Column("cancel_requested_at", MOMENT, nullable=True),
        sa.Column("lease_owner", sa.String(64), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("webhook_sent_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["frame_id"], ["frames.id"], name=op.f("fk_runs_frame_id_frames")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_runs_owner_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_runs_frame_id_id"), "runs", ["frame_id", "id"])
    op.create_index(op.f("ix_runs_owner_id"), "runs", ["owner_id"])
    op.create_index(op.f("ix_runs_state_lease_expires_at"), "runs", ["state", "lease_expires_at"])


def _run_chunks() -> None:
    op.create_table(
        "run_chunks",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("reused", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(64), nullable=True),
        sa.Column("lease_expires_at", MOMENT, nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'running', 'done')", name=op.f("ck_run_chunks_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_chunks_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_run_chunks")),
    )
    op.create_index(op.f("ix_run_chunks_state_lease_expires_at"), "run_chunks", ["state", "lease_expires_at"])


def _run_items() -> None:
    op.create_table(
        "run_items",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("product_id", sa.String(256), nullable=True),
        sa.Column("image_url", sa.String(8192), nullable=True),
        sa.Column("fields", DOCUMENT, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reused", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(64), nullable=True),
        sa.Column("reason", sa.String(512), nullable=True),
        sa.Column("source_key", sa.String(255), nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'completed', 'failed', 'skipped')", name=op.f("ck_run_items_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_items_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("pk_run_items")),
    )
    op.create_index(op.f("ix_run_items_run_id_product_id"), "run_items", ["run_id", "product_id"])
    op.create_index(op.f("ix_run_items_run_id_state"), "run_items", ["run_id", "state"])


def _outputs() -> None:
    op.create_table(
        "outputs",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("size", sa.String(32), nullable=False),
        sa.Column("frame_id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("suffix", sa.String(8), nullable=False),
        sa.Column("object_key", sa.String(255), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("deleted_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["frame_id"], ["frames.id"], name=op.f("fk_outputs_frame_id_frames")),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_outputs_owner_id_users")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_outputs_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "position", "size", name=op.f("pk_outputs")),
    )
    op.create_index(op.f("ix_outputs_frame_id_run_id"), "outputs", ["frame_id", "run_id"])
    op.create_index(op.f("ix_outputs_name"), "outputs", ["name"])
    op.create_index(op.f("ix_outputs_object_key"), "outputs", ["object_key"])
    op.create_index(op.f("ix_outputs_owner_id"), "outputs", ["owner_id"])
