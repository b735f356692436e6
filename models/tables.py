"""The tables. Every resource has an owner from the first migration; times are UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

SOURCED = text("source_key IS NOT NULL")
DELETED = text("deleted_at IS NOT NULL")


NUMBERS_COME_ONCE = {"sqlite_autoincrement": True}
"""SQLite gives the number of a deleted last row to the next one, unless told; PostgreSQL never does."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with its zone. SQLite keeps no zone, so it stores UTC and gets it back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Root of the tables; its metadata is what migrations are compared with."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declarative attribute
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
    }


class GenerationState(StrEnum):
    """Where a generation stands in the ledger."""

    ACCEPTED = "accepted"
    """The row is saved and nothing was sent to a backend."""
    SUBMITTED = "submitted"
    """A backend may have the job: saved before the request leaves."""
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        """Whether a row in this state will never change again."""
        return self in (GenerationState.COMPLETED, GenerationState.FAILED)


OPEN_STATES = tuple(state.value for state in GenerationState if not state.terminal)


class User(Base):
    """Somebody who owns things. Login comes with its own tables."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class ApiKey(Base):
    """A key of the form `igen_<id>_<secret>`; only the SHA-256 of the secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class Generation(Base):
    """The ledger: one row for each accepted request, which always ends completed or failed.

    `fence` goes up with every change of the lease's owner; a writer with an old number is refused. A deleted row
    stays, for its count and its Idempotency-Key, and is shown to nobody.
    """

    __tablename__ = "generations"
    __table_args__ = (
        UniqueConstraint("owner_id", "idempotency_key"),
        CheckConstraint("state IN ('accepted', 'submitted', 'completed', 'failed')", name="state"),
        Index(None, "owner_id", "id"),
        Index(None, "state", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(String(128))
    input: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    backend: Mapped[str] = mapped_column(String(512))
    backend_kind: Mapped[str] = mapped_column(String(16))
    backend_job_id: Mapped[str | None] = mapped_column(String(256))
    lease_owner: Mapped[str] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime]
    fence: Mapped[int] = mapped_column(Integer)
    output: Mapped[dict[str, Any] | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    submitted_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class Picture(Base):
    """One stored picture of a generation. `name` is the capability in its link, `object_key` where its bytes lie.

    A deleted picture's row stays until the sweeper has seen to its object.
    """

    __tablename__ = "pictures"
    __table_args__ = (
        UniqueConstraint("generation_id", "position"),
        Index("ix_pictures_deleted", "object_key", sqlite_where=DELETED, postgresql_where=DELETED),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(32), unique=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    generation_id: Mapped[str] = mapped_column(ForeignKey("generations.id"))
    position: Mapped[int] = mapped_column(Integer)
    object_key: Mapped[str] = mapped_column(String(255), index=True)
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class RequestLog(Base):
    """One request and its answer. No foreign keys: the log outlives what it speaks of."""

    __tablename__ = "request_log"
    __table_args__ = (Index(None, "owner_id", "at"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    request_id: Mapped[str] = mapped_column(String(128), index=True)
    method: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(String(512))
    query: Mapped[str] = mapped_column(String(512))
    status: Mapped[int] = mapped_column(Integer)
    duration_ms: Mapped[float]
    owner_id: Mapped[str | None] = mapped_column(String(40))
    key_id: Mapped[str | None] = mapped_column(String(12))
    generation_id: Mapped[str | None] = mapped_column(String(40), index=True)
    client: Mapped[str] = mapped_column(String(64))
    error_code: Mapped[str | None] = mapped_column(String(64))
    request_body: Mapped[dict[str, Any] | None]
    response_body: Mapped[dict[str, Any] | None]


class Asset(Base):
    """A font or a badge picture that an owner uploaded for designs to name."""

    __tablename__ = "assets"
    __table_args__ = (CheckConstraint("kind IN ('font', 'badge')", name="kind"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    kind: Mapped[str] = mapped_column(String(8))
    name: Mapped[str] = mapped_column(String(128))
    object_key: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class Frame(Base):
    """A frame's picture, the feed whose products go into it, and how they do.

    `id` is an integer, as present clients use. `secret` goes into the names of outputs, so that nobody can work
    one out. `revision` goes up with every edit. A deleted frame stays until the sweeper has removed its objects.
    """

    __tablename__ = "frames"
    __table_args__ = (
        CheckConstraint("feed_mode IN ('replace', 'additional')", name="feed_mode"),
        NUMBERS_COME_ONCE,
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    revision: Mapped[int] = mapped_column(Integer)
    secret: Mapped[str] = mapped_column(String(64))
    picture_key: Mapped[str] = mapped_column(String(255))
    picture_sha256: Mapped[str] = mapped_column(String(64))
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    transparent: Mapped[bool]
    design: Mapped[dict[str, Any]]
    feed_url: Mapped[str | None] = mapped_column(String(8192))
    feed_key: Mapped[str | None] = mapped_column(String(255))
    """Where an uploaded feed lies; it has no `feed_url` then."""
    feed_mode: Mapped[str] = mapped_column(String(16))
    feed_token: Mapped[str | None] = mapped_column(String(40), unique=True)
    refresh_seconds: Mapped[int | None] = mapped_column(Integer)
    next_refresh_at: Mapped[datetime | None] = mapped_column(index=True)
    webhook_url: Mapped[str | None] = mapped_column(String(2048))
    webhook_secret: Mapped[str | None] = mapped_column(String(64))
    """What webhooks are signed with, once the owner has asked for a new one; before, it is worked out of `secret`."""
    published_run_id: Mapped[int | None] = mapped_column(Integer)
    """The run whose feed `feed_token` names now."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    INGESTING = "ingesting"
    COMPOSING = "composing"
    PUBLISHING = "publishing"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        """Whether a run in this state will never change again."""
        return self in FINISHED_RUNS


FINISHED_RUNS = frozenset({RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES, RunState.CANCELLED, RunState.FAILED})


class Run(Base):
    """One pass of one feed through one frame, with all that it was started with.

    `snapshot` holds what decides the pixels: the frame's picture, size and secret, the design, the assets' keys.
    The lease is that of the ingest or publish job; chunks have their own. `fence` goes up with every taker.
    """

    __tablename__ = "runs"
    __table_args__ = (
        Index(None, "frame_id", "id"),
        Index(None, "state", "lease_expires_at"),
        Index(None, "finished_at"),
        NUMBERS_COME_ONCE,
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    frame_id: Mapped[int] = mapped_column(ForeignKey("frames.id"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    state: Mapped[str] = mapped_column(String(24))
    trigger: Mapped[str] = mapped_column(String(16))
    snapshot: Mapped[dict[str, Any]]
    feed_url: Mapped[str | None] = mapped_column(String(8192))
    feed_key: Mapped[str | None] = mapped_column(String(255))
    """The stored copy of the feed as fetched, from which the output feed is made."""
    feed_sha256: Mapped[str | None] = mapped_column(String(64))
    partial: Mapped[bool]
    """Whether the feed could only be read in recovery."""
    total: Mapped[int | None] = mapped_column(Integer)
    output_feed_key: Mapped[str | None] = mapped_column(String(255))
    output_csv_key: Mapped[str | None] = mapped_column(String(255))
    error_code: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[str | None] = mapped_column(String(1024))
    cancel_requested_at: Mapped[datetime | None]
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    webhook_sent_at: Mapped[datetime | None]
    """When the word of its end was delivered, or given up: then `webhook_error` says why."""
    webhook_attempts: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    webhook_next_at: Mapped[datetime | None]
    webhook_error: Mapped[str | None] = mapped_column(String(255))


class ItemState(StrEnum):
    """What became of one entry of a feed."""

    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """The entry itself is at fault (no id, a duplicate, no picture): nothing was tried."""


class RunChunk(Base):
    """Some 25 to 100 entries that one job works through; its counts are rewritten in its last transaction."""

    __tablename__ = "run_chunks"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'running', 'done')", name="state"),
        Index(None, "state", "lease_expires_at"),
    )

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    first: Mapped[int] = mapped_column(Integer)
    """Position of its first entry; it has those up to `first + size`."""
    size: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(8))
    completed: Mapped[int] = mapped_column(Integer)
    reused: Mapped[int] = mapped_column(Integer)
    """How many of `completed` had an output with the same inputs already."""
    failed: Mapped[int] = mapped_column(Integer)
    skipped: Mapped[int] = mapped_column(Integer)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)


class RunItem(Base):
    """One entry of a run's feed. `position` is its ordinal in the feed, from 0."""

    __tablename__ = "run_items"
    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'completed', 'failed', 'skipped')", name="state"),
        Index(None, "run_id", "product_id"),
        Index(None, "run_id", "state"),
        # an entry that comes in has no source yet, so that writing a million of them does not touch this one
        Index(None, "source_key", sqlite_where=SOURCED, postgresql_where=SOURCED),
    )

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    product_id: Mapped[str | None] = mapped_column(String(256))
    image_url: Mapped[str | None] = mapped_column(String(8192))
    fields: Mapped[dict[str, Any]]
    """The feed's fields that the design uses, and the title."""
    state: Mapped[str] = mapped_column(String(16))
    reused: Mapped[bool]
    attempts: Mapped[int] = mapped_column(Integer)
    code: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(String(512))
    source_key: Mapped[str | None] = mapped_column(String(255))
    finished_at: Mapped[datetime | None]


class Output(Base):
    """One framed picture of one entry at one of the design's sizes.

    `name` is the hash of everything that decides its pixels, the frame's secret among it; several rows, of several
    runs, may share it, and the object goes with the last.
    """

    __tablename__ = "outputs"
    __table_args__ = (
        Index(None, "frame_id", "run_id"),
        Index("ix_outputs_deleted", "frame_id", "object_key", sqlite_where=DELETED, postgresql_where=DELETED),
    )

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    size: Mapped[str] = mapped_column(String(32), primary_key=True)
    frame_id: Mapped[int] = mapped_column(ForeignKey("frames.id"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    suffix: Mapped[str] = mapped_column(String(8))
    object_key: Mapped[str] = mapped_column(String(255), index=True)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    bytes: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class Source(Base):
    """What is known of a product picture's address, for the next conditional request."""

    __tablename__ = "sources"

    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    url_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    url: Mapped[str] = mapped_column(String(8192))
    etag: Mapped[str | None] = mapped_column(String(512))
    last_modified: Mapped[str | None] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    object_key: Mapped[str] = mapped_column(String(255), index=True)
    bytes: Mapped[int] = mapped_column(Integer)
    checked_at: Mapped[datetime]
    """When its answer last was another than before; a 304 leaves it."""


class Reply(Base):
    """The answer that a caller's Idempotency-Key began, saved with what it made, to be given again word for word."""

    __tablename__ = "replies"

    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Lease(Base):
    """A named lease that one process holds at a time, such as the reconciler's."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime]
