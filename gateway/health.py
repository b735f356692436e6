"""Is this process able to serve? Liveness asks nothing; readiness asks everything that a request needs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.exceptions import RedisError

from models.errors import IgenError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from gateway.backend import Backend
    from gateway.breaker import Breaker
    from models.db import Database
    from models.store import ObjectStore

CHECK_S = 3.0
KEPT_S = 1.0
"""An answer is good for this long, so that many askers cost as much as one."""
NEEDED = ("database", "store")
"""Without one of these no request can be served; without the others some can."""

log = get_logger(__name__)


class Health:
    """The checks of readiness."""

    def __init__(
        self, *, db: Database, store: ObjectStore, backend: Backend, breaker: Breaker, redis_url: str | None
    ) -> None:
        self._db = db
        self._store = store
        self._backend = backend
        self._breaker = breaker
        self._redis = redis_url
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._found: dict[str, str] = {}

    async def checks(self) -> dict[str, str]:
        """Each part by name: `ok`, or why not in a few words without addresses."""
        async with self._asking:
            if time.monotonic() - self._asked_at > KEPT_S:
                self._found = await self._ask()
                self._asked_at = time.monotonic()
            return self._found

    @staticmethod
    def status(checks: dict[str, str], *, draining: bool) -> str:
        """`ready`, `degraded` or `not_ready`."""
        if draining or any(checks[name] != "ok" for name in NEEDED):
            return "not_ready"
        return "ready" if all(found == "ok" for found in checks.values()) else "degraded"

    async def _ask(self) -> dict[str, str]:
        parts: dict[str, Awaitable[str]] = {
            "database": _good(self._db.check()),
            "store": _good(self._store.check()),
            "backend": _good(self._check_backend()),
        }
        if self._redis is not None:
            parts["redis"] = _good(_check_redis(self._redis))
        return dict(zip(parts, await asyncio.gather(*parts.values()), strict=True))

    async def _check_backend(self) -> None:
        if not await self._backend.ping():
            raise ConnectionError
        self._breaker.succeeded()  # it answers: callers need not wait for their own probe


async def _check_redis(url: str) -> None:
    async with Redis.from_url(url, socket_connect_timeout=CHECK_S, socket_timeout=CHECK_S) as client:
        await client.ping()


async def _good(check: Awaitable[None]) -> str:
    try:
        async with asyncio.timeout(CHECK_S):
            await check
    except TimeoutError:
        return "no answer in time"
    except (IgenError, RedisError, OSError, ValueError) as problem:
        log.warning("check_failed", reason=f"{type(problem).__name__}: {problem}")
        return "not available"
    return "ok"
