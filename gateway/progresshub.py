"""Progress of frames for everybody who watches: one follower of a frame for each process, however many look on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from compositor.progress import follow, is_stale, snapshot
from gateway.errors import BusyError
from models.db import DatabaseError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from models.db import Database

Message = dict[str, Any]

MOST_WATCHERS = 1000
MOST_OF_ONE = 50
"""Watchers of one owner."""
AGAIN_S = 1.0
BUSY_RETRY_S = 10
PASSING = ("seq", "rate", "eta", "product_id")
"""What changes without anything having happened."""

log = get_logger(__name__)


class Mailbox:
    """The newest message that its reader has not seen: a slow reader misses numbers in between, never the last."""

    def __init__(self) -> None:
        self._newest: Message | None = None
        self._filled = asyncio.Event()

    def put(self, message: Message) -> None:
        """Replace what waits. Never blocks."""
        self._newest = message
        self._filled.set()

    async def get(self, at_most_s: float) -> Message | None:
        """The newest message, waited for a moment; None when there was none."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._filled.wait()
        except TimeoutError:
            return None
        self._filled.clear()
        message, self._newest = self._newest, None
        return message


class Watch:
    """One watcher's view of a frame."""

    def __init__(self, mailbox: Mailbox, first: Message) -> None:
        self._mailbox = mailbox
        self._last = first
        self.first = first

    async def next(self, at_most_s: float) -> Message | None:
        """The next message with news; None when there was none within the time."""
        message = await self._mailbox.get(at_most_s)
        if message is None or ("error" in message and message.get("type") == "error"):
            return message
        if not _is_news(message, self._last):
            return None
        self._last = message
        return message


class ProgressHub:
    """All watchers of this process."""

    def __init__(self, db: Database, redis: Redis | None) -> None:
        self._db = db
        self._redis = redis
        self._mailboxes: dict[int, set[Mailbox]] = {}
        self._followers: dict[int, asyncio.Task[None]] = {}
        self._owners: dict[str, int] = {}

    @asynccontextmanager
    async def watch(self, owner_id: str, frame_id: int) -> AsyncIterator[Watch]:
        """A watch of a frame, which begins with a snapshot.

        Raises:
            BusyError: too many watch, all together or of this owner.
            DatabaseError: from the snapshot.

        """
        mine = self._owners.get(owner_id, 0)
        if mine >= MOST_OF_ONE or sum(self._owners.values()) >= MOST_WATCHERS:
            raise BusyError("Too many watch progress. Close some.", retry_after_s=BUSY_RETRY_S)
        self._owners[owner_id] = mine + 1
        mailbox = Mailbox()
        self._mailboxes.setdefault(frame_id, set()).add(mailbox)
        try:
            self._follow(frame_id)
            yield Watch(mailbox, await self.snapshot(frame_id))
        finally:
            self._leave(owner_id, frame_id, mailbox)

    async def snapshot(self, frame_id: int) -> Message:
        """Where a frame's latest run stands now."""
        return await snapshot(self._db, frame_id, self._redis)

    async def stop(self) -> None:
        """End all followers."""
        tasks = list(self._followers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, frame_id: int) -> None:
        if frame_id not in self._followers:
            task = asyncio.create_task(self._pass_on(frame_id), name=f"progress-{frame_id}")
            self._followers[frame_id] = task

    def _leave(self, owner_id: str, frame_id: int, mailbox: Mailbox) -> None:
        self._owners[owner_id] -= 1
        if not self._owners[owner_id]:
            del self._owners[owner_id]
        self._mailboxes[frame_id].discard(mailbox)
        if not self._mailboxes[frame_id]:
            del self._mailboxes[frame_id]
            self._followers.pop(frame_id).cancel()

    async def _pass_on(self, frame_id: int) -> None:
        while True:
            try:
                async for message in follow(self._db, self._redis, frame_id):
                    self._tell(frame_id, message)
            except DatabaseError as problem:
                self._tell(frame_id, {"type": "error", "error": {"code": problem.code, "message": problem.message}})
            except Exception:  # the edge of a task that must not die while somebody watches
                log.exception("progress_crashed", frame_id=frame_id)
            await asyncio.sleep(AGAIN_S)

    def _tell(self, frame_id: int, message: Message) -> None:
        for mailbox in self._mailboxes.get(frame_id, ()):
            mailbox.put(message)


def _is_news(message: Message, last: Message) -> bool:
    """Whether a message tells more than the last that was sent: later in its epoch, or other numbers."""
    if is_stale(message, last):
        return False
    new, old = message.get("seq"), last.get("seq")
    if new and old and new[0] == old[0] and message.get("run_id") == last.get("run_id"):
        if new[1] < old[1]:
            return False
        if new[1] > old[1]:
            return True
    return _lasting(message) != _lasting(last)


def _lasting(message: Message) -> Message:
    return {name: value for name, value in message.items() if name not in PASSING}
