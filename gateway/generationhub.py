"""Progress and previews of generations for everybody who watches, however many look on.

Only a watched job is asked after. RunPod's `/stream` hands each piece out once, so a job has one poller among all
gateways: whoever holds its key in Redis. It publishes on `igen:gen:<id>`, and the others pass on what they hear. A
gateway that has no Redis, or whose Redis is silent, polls by itself; two of those would share the previews of a job.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from gateway.backend import AnswerLostError, NotSentError, UnknownJobError
from gateway.errors import BusyError
from gateway.failures import GenerationError
from gateway.generationnews import news_of, previews_in, progress_in
from gateway.services import OwnerLimit
from gateway.settings import BackendKind
from models.db import DatabaseError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from gateway.backend import Backend
    from gateway.generationnews import News
    from gateway.ledger import Ledger, Told

MOST_WATCHERS = 500
MOST_OF_ONE = 20
"""Watchers of one owner."""
BUSY_RETRY_S = 10
HOLD_S = 3.0
"""How long a self-hosted backend is asked to hold an answer back until something changes."""
POLL_S = 1.0
"""Between two questions to RunPod, which holds nothing back, and after a fault."""
SOON_S = 0.25
HEARTBEAT_MS = 10_000
"""How long a poller may be silent before another gateway takes its place."""

FAULTS = (DatabaseError, RedisError, GenerationError, NotSentError, AnswerLostError, UnknownJobError)

log = get_logger(__name__)


class Box:
    """What one watcher has not seen: the newest progress, and of each picture the newest preview."""

    def __init__(self, known: dict[str, News]) -> None:
        self._waiting = dict(known)
        self._filled = asyncio.Event()
        if known:
            self._filled.set()

    def put(self, news: News) -> None:
        """Put it in the place of older news of its kind. Never blocks."""
        self._waiting.pop(news.place, None)
        self._waiting[news.place] = news
        self._filled.set()

    async def take(self, at_most_s: float) -> list[News]:
        """All that is new, waited for a moment."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._filled.wait()
        except TimeoutError:
            return []
        self._filled.clear()
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())


@dataclass(slots=True)
class _Followed:
    boxes: set[Box] = field(default_factory=set)
    newest: dict[str, News] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class GenerationHub:
    """All watchers of generations in this process."""

    def __init__(self, backend: Backend, ledger: Ledger, redis: Redis | None, *, polls: int) -> None:
        """`polls`: questions to the backend at once."""
        self._backend = backend
        self._ledger = ledger
        self._redis = redis
        self._polls = asyncio.Semaphore(polls)
        self._me = secrets.token_hex(8)
        self._followed: dict[str, _Followed] = {}
        self._watchers = 0
        self._owners = OwnerLimit(MOST_OF_ONE, "progress streams")

    @asynccontextmanager
    async def watch(self, owner_id: str, generation_id: str) -> AsyncIterator[Box]:
        """What becomes known of a generation until the end of the block.

        Raises:
            BusyError: too many watch.
            OwnerLimitError: too many of this owner.

        """
        self._refuse_too_many()
        with self._owners.enter(owner_id):
            followed = self._followed.setdefault(generation_id, _Followed())
            if not followed.tasks:
                followed.tasks = self._follow(generation_id)
            box = Box(followed.newest)
            followed.boxes.add(box)
            self._watchers += 1
            try:
                yield box
            finally:
                self._watchers -= 1
                followed.boxes.discard(box)
                if not followed.boxes:
                    self._followed.pop(generation_id)
                    for task in followed.tasks:
                        task.cancel()

    def check(self, owner_id: str) -> None:
        """Raise as `watch` would, before an answer begins that cannot be taken back."""
        self._refuse_too_many()
        with self._owners.enter(owner_id):
            return

    async def stop(self) -> None:
        """End all followers."""
        tasks = [task for followed in self._followed.values() for task in followed.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _refuse_too_many(self) -> None:
        if self._watchers >= MOST_WATCHERS:
            raise BusyError("Too many watch progress. Close some.", retry_after_s=BUSY_RETRY_S)

    def _follow(self, generation_id: str) -> list[asyncio.Task[None]]:
        works = [self._poll, *([] if self._redis is None else [self._listen])]
        return [asyncio.create_task(self._steadily(work, generation_id)) for work in works]

    async def _steadily(self, work: Any, generation_id: str) -> None:
        """Do some work again and again; faults of others are waited out."""
        while True:
            try:
                await work(generation_id)
            except FAULTS as problem:
                log.info("generation_not_followed", generation_id=generation_id, reason=type(problem).__name__)
            except Exception:  # the edge of a task that must not die while somebody watches
                log.exception("generation_follower_crashed", generation_id=generation_id)
            await asyncio.sleep(POLL_S)

    async def _poll(self, generation_id: str) -> None:
        """Ask after a job while this process is the one to do it, and tell everybody."""
        seen: int | None = 0
        try:
            while await self._is_ours(generation_id):
                told = await self._ledger.tell(generation_id)
                if told is None or told.state.terminal:
                    return  # watchers read the row themselves
                if seen is None:
                    await asyncio.sleep(SOON_S)
                    continue
                async with self._polls:
                    seen = await self._ask(told, seen)
        finally:
            await self._leave(generation_id)

    async def _ask(self, told: Told, seen: int) -> int | None:
        """One question; returns the newest preview that is known of, None when there is nothing more to ask."""
        row, selfhosted = told.row, self._backend.kind is BackendKind.SELFHOSTED
        job_id = row.backend_job_id or (row.id if selfhosted and row.submitted_at is not None else None)
        if job_id is None:
            await asyncio.sleep(SOON_S)
            return seen
        answer = await self._backend.status(job_id, wait_s=HOLD_S if selfhosted else 0)
        if answer.status.terminal:  # its row is about to be closed, and a second answer would be as long as the first
            return None
        found = progress_in(answer.output)
        if found is not None:
            await self._tell(row.id, found.news)
            if selfhosted and found.preview_seq > seen:
                for news in previews_in(await self._backend.stream(job_id)):
                    await self._tell(row.id, news)
                return found.preview_seq
        if not selfhosted:
            for news in previews_in([answer.output]):
                await self._tell(row.id, news)
            await asyncio.sleep(POLL_S)
        return seen

    async def _tell(self, generation_id: str, news: News) -> None:
        known = self._followed.get(generation_id)
        if known is None or known.newest.get(news.place) == news:
            return
        self._pass_on(generation_id, news)
        if self._redis is not None:
            try:
                await self._redis.publish(channel(generation_id), json.dumps([self._me, news.kind, news.message]))
            except RedisError as problem:  # our own watchers know already
                log.info("generation_not_published", generation_id=generation_id, reason=type(problem).__name__)

    def _pass_on(self, generation_id: str, news: News) -> None:
        if (followed := self._followed.get(generation_id)) is None:
            return
        followed.newest[news.place] = news
        for box in followed.boxes:
            box.put(news)

    async def _listen(self, generation_id: str) -> None:
        """Pass on what another gateway's poller says."""
        if self._redis is None:
            return
        async with self._redis.pubsub(ignore_subscribe_messages=True) as hearing:
            await hearing.subscribe(channel(generation_id))
            while True:
                heard = await hearing.get_message(timeout=POLL_S)
                if heard is not None and (said := json.loads(heard["data"]))[0] != self._me:
                    self._pass_on(generation_id, news_of(said[1], said[2]))

    async def _is_ours(self, generation_id: str) -> bool:
        """Whether this process is to poll: nobody else does, or nobody can tell."""
        if self._redis is None:
            return True
        try:
            if await self._redis.set(_poller(generation_id), self._me, px=HEARTBEAT_MS, nx=True):
                return True
            if not await self._holds(self._redis, generation_id):
                return False
            await self._redis.pexpire(_poller(generation_id), HEARTBEAT_MS)
        except RedisError as problem:
            log.info("generation_followed_alone", generation_id=generation_id, reason=type(problem).__name__)
        return True

    async def _holds(self, redis: Redis, generation_id: str) -> bool:
        holder = await redis.get(_poller(generation_id))
        return holder in (self._me, self._me.encode())

    async def _leave(self, generation_id: str) -> None:
        """Let another gateway poll at once; without a word it may when the heartbeat has run out."""
        if self._redis is None:
            return
        try:
            if await self._holds(self._redis, generation_id):
                await self._redis.delete(_poller(generation_id))
        except RedisError as problem:
            log.info("generation_not_left", generation_id=generation_id, reason=type(problem).__name__)


def channel(generation_id: str) -> str:
    """Where a generation's news are published."""
    return f"igen:gen:{generation_id}"


def _poller(generation_id: str) -> str:
    return f"igen:gen:{generation_id}:poller"
