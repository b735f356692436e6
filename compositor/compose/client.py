"""Asking the composing process from asyncio: one product after the other on each connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from compositor.compose import protocol
from compositor.compose.connection import Connection
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import Composed, PictureInfo
from compositor.compose.process import ComposeProcess

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.connection import Answer
    from compositor.compose.job import ComposeJob

__all__ = ["ComposeClient", "ComposePool", "ComposeProcess"]

CONNECT_TIMEOUT_S = 10.0
CONNECT_TRIES = 3
PAUSE_S = 0.2
DEFAULT_TIMEOUT_S = 30.0
IN_HAND = 2
"""Requests that are sent: the one that is worked on, and the next. `Connection` knows of no more."""
FIELD_MAX_CHARS = 2000
"""No text of a frame is longer, so a feed's long description need not travel. A run's rows keep as much."""


class ComposeClient:
    """One connection to the composing process, opened when first needed and again after it was lost.

    Requests are worked on one after the other; the next one is sent meanwhile, so that the process need not wait
    for it. Give it the `ComposeProcess` to have a dead process started again.
    """

    def __init__(self, socket_path: Path, process: ComposeProcess | None = None) -> None:
        self._path = socket_path
        self._process = process
        self._in_hand = asyncio.Semaphore(IN_HAND)
        self._connecting = asyncio.Lock()
        self._connection: Connection | None = None

    @property
    def child_pid(self) -> int | None:
        """The process that serves this connection; None while there is none."""
        return None if self._connection is None or not self._connection.usable else self._connection.pid

    async def __aenter__(self) -> Self:
        """Connects later, when first asked."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connection, which ends the process behind it."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def compose(self, job: ComposeJob, timeout_s: float = DEFAULT_TIMEOUT_S) -> Composed:
        """Compose one product.

        Args:
            job: what to compose.
            timeout_s: seconds this product may take, waiting for the connection not counted.

        Raises:
            ComposeError: why there is no picture; `retryable` says whether another try makes sense.

        """
        header, data = await self._ask({"do": "compose", "job": _message(job)}, timeout_s)
        return Composed(data, int(header["width"]), int(header["height"]))

    async def compose_file(self, job: ComposeJob, target: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """As `compose`, into a file that is not there yet; returns its bytes. After an error there may be a part.

        Raises:
            ComposeError: as `compose`, and `output_not_written`.

        """
        header, _ = await self._ask({"do": "compose", "job": _message(job), "to": str(target)}, timeout_s)
        return int(header["wrote"])

    async def inspect(self, path: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> PictureInfo:
        """What a picture file is; it is decoded to the end.

        Raises:
            ComposeError: it is no picture, or not one that we take.

        """
        header, _ = await self._ask({"do": "inspect", "path": str(path)}, timeout_s)
        return PictureInfo(header["width"], header["height"], header["transparent"], header["format"])

    async def inspect_font(self, path: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """See that a font's letters can be drawn.

        Raises:
            ComposeError: they cannot.

        """
        await self._ask({"do": "inspect_font", "path": str(path)}, timeout_s)

    async def _ask(self, request: dict[str, Any], timeout_s: float) -> Answer:
        try:
            body = protocol.encode({**request, "timeout_s": timeout_s})
        except ValueError as error:
            raise ComposeError(ComposeCode.COMPOSE_FAILED, "The product's fields are too large.") from error
        async with self._in_hand:
            answer = None
            while answer is None:  # the one before it ended the connection: that is no fault of this one
                connection = await self._connected()
                answer = await connection.ask(body, timeout_s)
        header, data = answer
        if "code" in header:
            raise ComposeError(str(header["code"]), str(header["message"]))
        return header, data

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is not None and self._connection.usable:
                return self._connection
            if self._connection is not None and self._connection.idle:
                await self._connection.close()
            for attempt in range(CONNECT_TRIES):
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        self._connection = await Connection.open(self._path)
                except TimeoutError as error:
                    raise ComposeError(ComposeCode.DECODER_TIMEOUT, "The composing process is too slow.") from error
                except (OSError, asyncio.IncompleteReadError):
                    await self._revive(attempt)
                else:
                    return self._connection
        raise ComposeError(ComposeCode.COMPOSER_UNAVAILABLE, "The composing process cannot be reached.")

    async def _revive(self, attempt: int) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.ensure)
        await asyncio.sleep(PAUSE_S * attempt)


def _message(job: ComposeJob) -> dict[str, Any]:
    return {**job.to_json(), "fields": {name: value[:FIELD_MAX_CHARS] for name, value in job.fields.items()}}


class ComposePool:
    """Several connections behind the calls of one; further requests wait their turn."""

    def __init__(self, socket_path: Path, size: int, process: ComposeProcess | None = None) -> None:
        self._clients = [ComposeClient(socket_path, process) for _ in range(size)]
        self._free: asyncio.LifoQueue[ComposeClient] = asyncio.LifoQueue(size)
        for client in self._clients:
            self._free.put_nowait(client)

    async def __aenter__(self) -> Self:
        """Connections are opened when first needed."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes all connections."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.close()

    async def compose(self, job: ComposeJob, timeout_s: float = DEFAULT_TIMEOUT_S) -> Composed:
        """As `ComposeClient.compose`.

        Raises:
            ComposeError: as there.

        """
        client = await self._free.get()
        try:
            return await client.compose(job, timeout_s)
        finally:
            self._free.put_nowait(client)

    async def inspect(self, path: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> PictureInfo:
        """As `ComposeClient.inspect`.

        Raises:
            ComposeError: as there.

        """
        client = await self._free.get()
        try:
            return await client.inspect(path, timeout_s)
        finally:
            self._free.put_nowait(client)

    async def inspect_font(self, path: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """As `ComposeClient.inspect_font`.

        Raises:
            ComposeError: as there.

        """
        client = await self._free.get()
        try:
            await client.inspect_font(path, timeout_s)
        finally:
            self._free.put_nowait(client)
