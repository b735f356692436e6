"""The gateway's own composing children: it decodes no picture itself, neither an upload nor a preview."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Protocol

from compositor.compose.client import ComposePool, ComposeProcess
from compositor.compose.errors import ComposeCode, ComposeError
from gateway.errors import BusyError
from models.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from compositor.compose.job import Composed, ComposeJob, PictureInfo

TIMEOUT_S = 20.0
MOST_WAITING = 64
BUSY_RETRY_S = 5


class Composer(Protocol):
    """What the gateway asks of the compositor's children. All may raise ComposeError."""

    async def inspect(self, path: Path) -> PictureInfo:
        """Size, transparency and format of a picture file, which is decoded to its end."""
        ...

    async def inspect_font(self, path: Path) -> None:
        """Draw some of a font's letters."""
        ...

    async def compose(self, job: ComposeJob) -> Composed:
        """One product in its frame."""
        ...


class ChildComposer:
    """A pool of children behind a bounded queue. The process behind them starts with the first request."""

    def __init__(self, pool: ComposePool) -> None:
        self._pool = pool
        self._waiting = 0

    async def inspect(self, path: Path) -> PictureInfo:
        """See Composer.

        Raises:
            ComposeError: it is no picture that we take.
            BusyError: too many wait.
            UnavailableError: the composing process cannot be started.

        """
        with self._place(), _as_unavailable():
            return await self._pool.inspect(path, TIMEOUT_S)

    async def inspect_font(self, path: Path) -> None:
        """See Composer; errors as `inspect`."""
        with self._place(), _as_unavailable():
            await self._pool.inspect_font(path, TIMEOUT_S)

    async def compose(self, job: ComposeJob) -> Composed:
        """See Composer; errors as `inspect`."""
        with self._place(), _as_unavailable():
            return await self._pool.compose(job, TIMEOUT_S)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= MOST_WAITING:
            raise BusyError(retry_after_s=BUSY_RETRY_S)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


class _as_unavailable:  # noqa: N801 - used as `with`, where a verb reads better
    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        if isinstance(problem, ComposeError) and problem.code == ComposeCode.COMPOSER_UNAVAILABLE:
            raise UnavailableError(retry_after_s=BUSY_RETRY_S) from problem


@asynccontextmanager
async def child_composer(children: int) -> AsyncIterator[ChildComposer]:
    """A composer with `children` children at most; they end with the block."""
    process = ComposeProcess()
    try:
        async with ComposePool(process.socket_path, children, process) as pool:
            yield ChildComposer(pool)
    finally:
        await asyncio.to_thread(process.stop)
