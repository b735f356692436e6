"""The exactly-once ledger: one row for each accepted request, which ends completed or failed and then never changes,
but that its owner may have it hidden.

Every change of a row is one UPDATE that holds only while the row is open and its fence is the writer's, so a process
that was silent past its lease can do no harm when it wakes. Leases are compared with the clock of the process that
looks: hosts must agree within a few seconds, and one that does not only takes over early, which the fence makes safe.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from gateway.errors import IdempotencyConflictError
from gateway.failures import GenerationError, to_row
from gateway.ids import new_id
from models.db import utc_now
from models.errors import FieldProblem
from models.tables import OPEN_STATES, Generation, GenerationState, Picture

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from datetime import datetime

    from sqlalchemy import CursorResult
    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database

TAKE_OVER_AT_ONCE = 16


class LeaseLostError(Exception):
    """Another process took the row over, or it has ended: this writer has nothing more to say about it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to change one row."""

    generation_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """A validated request about to be saved. `input` is complete: its seed is chosen."""

    id: str = field(default_factory=partial(new_id, "gen"), kw_only=True)
    owner_id: str
    key_id: str
    idempotency_key: str | None
    request_hash: str
    request_id: str
    input: dict[str, Any]
    backend: str
    backend_kind: str


@dataclass(frozen=True, slots=True)
class Told:
    """A generation and its pictures, as a caller is told of them."""

    row: Generation
    pictures: tuple[Picture, ...]

    @property
    def state(self) -> GenerationState:
        """The row's state."""
        return GenerationState(self.row.state)


class Ledger:
    """All reads and writes of generations. One object a process; its name owns the leases."""

    def __init__(self, db: Database, *, lease_seconds: float, clock: Callable[[], datetime] = utc_now) -> None:
        self.owner = f"gw_{secrets.token_hex(8)}"
        self._db = db
        self._lease = timedelta(seconds=lease_seconds)
        self._clock = clock

    async def open(self, new: NewGeneration) -> tuple[Generation, bool]:
        """Save a request, or find the one that its Idempotency-Key began.

        Returns:
            The row, and whether it is new and now leased to this process.

        Raises:
            IdempotencyConflictError: the key was used with another request.

        """
        if (known := await self.known(new)) is not None:
            return known, False
        row = self._fresh_row(new)
        try:
            async with self._db.write() as session:
                session.add(row)
        except IntegrityError:  # another retry with the same key was first
            if (known := await self.known(new)) is None:
                raise
            return known, False
        return row, True

    async def known(self, new: NewGeneration) -> Generation | None:
        """The row that a request's Idempotency-Key began; errors as `open`."""
        if new.idempotency_key is None:
            return None
        query = select(Generation).where(
            Generation.owner_id == new.owner_id, Generation.idempotency_key == new.idempotency_key
        )
        async with self._db.read() as session:
            row = await session.scalar(query)
        if row is not None and row.request_hash != new.request_hash:
            raise IdempotencyConflictError(
                details=[FieldProblem("Idempotency-Key", "was used before with another request body")]
            )
        return row

    async def mark_submitted(self, lease: Lease) -> None:
        """Say that a backend may have the job from now on. To be saved before the request leaves."""
        await self._change(lease, state=GenerationState.SUBMITTED.value, submitted_at=self._clock())

    async def keep_backend_job(self, lease: Lease, backend_job_id: str) -> None:
        """Keep the id under which the backend knows the job."""
        await self._change(lease, backend_job_id=backend_job_id)

    async def complete(
        self,
        lease: Lease,
        output: dict[str, Any],
        pictures: Sequence[Picture],
        before: Callable[[AsyncSession], Awaitable[None]] | None = None,
    ) -> None:
        """End a row with its pictures, both in one transaction, which begins with `before`."""
        async with self._db.write() as session:
            if before is not None:
                await before(session)
            await self._update(
                session, lease, state=GenerationState.COMPLETED.value, output=output, finished_at=self._clock()
            )
            session.add_all(pictures)

    async def fail(self, lease: Lease, error: GenerationError) -> None:
        """End a row without a picture. A key that the failure did not use up is free again."""
        released = {} if error.consumes_key else {"idempotency_key": None}
        await self._change(
            lease,
            state=GenerationState.FAILED.value,
            error_code=error.code,
            error=to_row(error),
            finished_at=self._clock(),
            **released,
        )

    async def delete(self, generation_id: str) -> bool:
        """Hide a row that has ended, and its pictures, for good; False: it has not ended. Again does nothing more."""
        now = self._clock()
        ended = (Generation.id == generation_id, Generation.state.not_in(OPEN_STATES))
        hide = update(Generation).where(*ended).values(deleted_at=func.coalesce(Generation.deleted_at, now))
        pictures = update(Picture).where(Picture.generation_id == generation_id, Picture.deleted_at.is_(None))
        async with self._db.write() as session:
            if not _rows(await session.execute(hide)):
                return False
            await session.execute(pictures.values(deleted_at=now))
        return True

    async def renew(self, ids: Collection[str]) -> set[str]:
        """Prolong this process's leases; returns those of `ids` that are open in another process's hands."""
        if not ids:
            return set()
        still_open = (Generation.id.in_(ids), Generation.state.in_(OPEN_STATES))
        mine = update(Generation).where(*still_open, Generation.lease_owner == self.owner)
        others = select(Generation.id).where(*still_open, Generation.lease_owner != self.owner)
        async with self._db.write() as session:
            await session.execute(mine.values(lease_expires_at=self._expiry()))
            return set(await session.scalars(others))

    async def release(self, lease: Lease) -> None:
        """Give a row back unfinished, so that another process may take it over at once."""
        await self._change(lease, lease_expires_at=self._clock())

    async def take_over(self, skip: Collection[str]) -> list[Generation]:
        """Lease open rows whose owner fell silent, oldest first. Of several processes only one gets each row."""
        now = self._clock()
        expired = (Generation.state.in_(OPEN_STATES), Generation.lease_expires_at <= now)
        query = select(Generation).where(*expired, Generation.id.not_in(skip))
        async with self._db.read() as session:
            found = list(await session.scalars(query.order_by(Generation.id).limit(TAKE_OVER_AT_ONCE)))
        return [row for row in found if await self._seize(row, now)]

    async def tell(self, generation_id: str) -> Told | None:
        """A row with its pictures, whoever owns it, and be it deleted."""
        async with self._db.read() as session:
            row = await session.get(Generation, generation_id)
            return None if row is None else (await _with_pictures(session, [row]))[0]

    async def recent(self, owner_id: str, *, limit: int, before: str | None) -> list[Told]:
        """An owner's rows that are not deleted, newest first, older than `before`."""
        query = select(Generation).where(Generation.owner_id == owner_id, Generation.deleted_at.is_(None))
        if before is not None:
            query = query.where(Generation.id < before)
        async with self._db.read() as session:
            rows = list(await session.scalars(query.order_by(Generation.id.desc()).limit(limit)))
            return await _with_pictures(session, rows)

    def _fresh_row(self, new: NewGeneration) -> Generation:
        return Generation(
            id=new.id,
            owner_id=new.owner_id,
            key_id=new.key_id,
            idempotency_key=new.idempotency_key,
            request_hash=new.request_hash,
            request_id=new.request_id,
            input=new.input,
            state=GenerationState.ACCEPTED.value,
            backend=new.backend,
            backend_kind=new.backend_kind,
            lease_owner=self.owner,
            lease_expires_at=self._expiry(),
            fence=1,
            created_at=self._clock(),
        )

    async def _seize(self, row: Generation, now: datetime) -> bool:
        taken = (
            update(Generation)
            .where(Generation.id == row.id, Generation.fence == row.fence, Generation.state.in_(OPEN_STATES))
            .where(Generation.lease_expires_at <= now)
            .values(lease_owner=self.owner, lease_expires_at=self._expiry(), fence=row.fence + 1)
        )
        async with self._db.write() as session:
            done = await session.execute(taken)
            if not _rows(done):
                return False
        row.fence += 1
        return True

    async def _change(self, lease: Lease, **values: Any) -> None:
        async with self._db.write() as session:
            await self._update(session, lease, **values)

    async def _update(self, session: AsyncSession, lease: Lease, **values: Any) -> None:
        guarded = update(Generation).where(
            Generation.id == lease.generation_id,
            Generation.fence == lease.fence,
            Generation.state.in_(OPEN_STATES),
        )
        if not _rows(await session.execute(guarded.values(**values))):
            raise LeaseLostError(lease.generation_id)

    def _expiry(self) -> datetime:
        return self._clock() + self._lease


async def _with_pictures(session: AsyncSession, rows: Sequence[Generation]) -> list[Told]:
    query = select(Picture).where(Picture.generation_id.in_([row.id for row in rows])).order_by(Picture.position)
    pictures: dict[str, list[Picture]] = {row.id: [] for row in rows}
    for picture in await session.scalars(query):
        pictures[picture.generation_id].append(picture)
    return [Told(row, tuple(pictures[row.id])) for row in rows]


def _rows(result: Any) -> int:
    done: CursorResult[Any] = result
    return done.rowcount
