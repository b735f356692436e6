"""The statements of chunks' transactions, made once: thousands of times a run they differ in their values alone.

Parameters are named `of_...` where they say which rows and `new_...` where they say what those become.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, and_, bindparam, case, func, select, update

from models.tables import ItemState, Output, Run, RunChunk, RunItem, RunState, Source

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

CHUNKS = cast("Table", RunChunk.__table__)
ITEMS = cast("Table", RunItem.__table__)
OUTPUTS = cast("Table", Output.__table__)
RUNS = cast("Table", Run.__table__)
SOURCES = cast("Table", Source.__table__)


def claimable(now: Any) -> ColumnElement[bool]:
    """Chunks that a worker may take: nobody's, or left behind by one that fell silent."""
    return case((CHUNKS.c.state == "running", CHUNKS.c.lease_expires_at <= now), else_=CHUNKS.c.state == "waiting")


COMPOSING = (
    select(RUNS.c.id).where(RUNS.c.id == bindparam("of_run"), RUNS.c.state == RunState.COMPOSING.value).exists()
)
_MINE = and_(
    CHUNKS.c.run_id == bindparam("of_run"),
    CHUNKS.c.number == bindparam("of_number"),
    CHUNKS.c.fence == bindparam("of_fence"),
)
_ITS_ITEMS = and_(
    ITEMS.c.run_id == bindparam("of_run"),
    ITEMS.c.position >= bindparam("of_first"),
    ITEMS.c.position < bindparam("of_end"),
)

FREE = (
    select(CHUNKS.c.number, CHUNKS.c.first, CHUNKS.c.size, CHUNKS.c.fence, CHUNKS.c.attempts)
    .where(CHUNKS.c.run_id == bindparam("of_run"), COMPOSING, claimable(bindparam("of_now")))
    .order_by(CHUNKS.c.number)
    .limit(1)
    .with_for_update(of=CHUNKS, skip_locked=True)
)
"""A chunk of a run that may be taken, held against others until the transaction ends."""

SEIZE = (
    update(CHUNKS)
    .where(_MINE)
    .values(
        state="running",
        lease_owner=bindparam("new_owner"),
        lease_expires_at=bindparam("new_until"),
        fence=CHUNKS.c.fence + 1,
        attempts=CHUNKS.c.attempts + 1,
    )
)

GUARD = (
    update(CHUNKS)
    .where(_MINE, CHUNKS.c.state == "running", COMPOSING)
    .values(
        lease_expires_at=bindparam("new_until"),
        attempts=case((bindparam("new_progress"), 0), else_=CHUNKS.c.attempts),
    )
)
"""Prolongs a lease that holds; changes no row where it does not."""

TRY = (
    update(ITEMS)
    .where(ITEMS.c.run_id == bindparam("of_run"), ITEMS.c.position.in_(bindparam("of_positions", expanding=True)))
    .values(attempts=ITEMS.c.attempts + bindparam("new_tries"))
)

OUTCOME_COLUMNS = ("state", "reused", "code", "reason", "source_key")
OUTCOME = (
    update(ITEMS)
    .where(ITEMS.c.run_id == bindparam("of_run"), ITEMS.c.position == bindparam("of_position"))
    .values({name: bindparam(f"new_{name}") for name in OUTCOME_COLUMNS})
    .values(finished_at=bindparam("new_finished_at"))
)

COUNT = select(ITEMS.c.state, ITEMS.c.reused, func.count()).where(_ITS_ITEMS).group_by(ITEMS.c.state, ITEMS.c.reused)

COUNTED = ("completed", "failed", "skipped", "reused")
COUNTS = update(CHUNKS).where(_MINE).values({name: bindparam(f"new_{name}") for name in COUNTED})
END = COUNTS.values(state=bindparam("new_state"), lease_owner=None, lease_expires_at=None)

FREE_COUNT = select(func.count()).where(CHUNKS.c.run_id == bindparam("of_run"), claimable(bindparam("of_now")))
ALL_DONE = select(RUNS.c.id).where(
    RUNS.c.id == bindparam("of_run"),
    RUNS.c.state == RunState.COMPOSING.value,
    ~select(CHUNKS.c.number).where(CHUNKS.c.run_id == bindparam("of_run"), CHUNKS.c.state != "done").exists(),
)
"""The run, if it is being composed and nothing of it is left to do."""

RUN_STANDING = select(
    *(RUNS.c.id, RUNS.c.frame_id, RUNS.c.state, RUNS.c.total),
    *(RUNS.c.started_at, RUNS.c.finished_at, RUNS.c.error_code),
).where(RUNS.c.id == bindparam("of_run"))

WAITING_ITEMS = (
    select(ITEMS.c.position, ITEMS.c.product_id, ITEMS.c.image_url, ITEMS.c.fields, ITEMS.c.attempts)
    .where(_ITS_ITEMS, ITEMS.c.state == ItemState.WAITING.value)
    .order_by(ITEMS.c.position)
)
