"""When a generation was deleted, and which pictures wait for their objects to go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
DELETED = sa.text("deleted_at IS NOT NULL")


def upgrade() -> None:
    """Add them."""
    op.add_column("generations", sa.Column("deleted_at", MOMENT, nullable=True))
    op.add_column("pictures", sa.Column("deleted_at", MOMENT, nullable=True))
    op.create_index("ix_pictures_deleted", "pictures", ["object_key"], sqlite_where=DELETED, postgresql_where=DELETED)


def downgrade() -> None:
    """Take them away; what was deleted and not yet removed is there again."""
    op.drop_index("ix_pictures_deleted", "pictures")
    op.drop_column("pictures", "deleted_at")
    op.drop_column("generations", "deleted_at")
