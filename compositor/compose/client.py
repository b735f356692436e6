"""Asking the composing process from asyncio: one product at a time on each connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from compositor.compose import protocol
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import Composed, PictureInfo
from compositor.compose.process import ComposeProcess

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.job import ComposeJob

__all__ = ["ComposeClient", "ComposePool", "ComposeProcess"]

CONNECT_TIMEOUT_S = 10.0
CONNECT_TRIES = 3
PAUSE_S = 0.2
DEFAULT_TIMEOUT_S = 30.0
READ_AHEAD = 2**20
"""Bytes of an answer that are taken in one go; most files are smaller."""
FIELD_MAX_CHARS = 4096
"""No text of a frame is longer, so a feed's long description need not travel."""


class ComposeClient:
    """One connection to the composing process, opened when first needed and again after it was lost.

    Requests wait for each other. Give it the `ComposeProcess` to have a dead process started again.
    """

    def __init__(self, socket_path: Path, process: ComposeProcess | None = None) -> None:
        self._path = socket_path
        self._process = process
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.child_pid: int | None = None
        """The process that serves this connection; None while there is none."""

    async def __aenter__(self) -> Self:
        """Connects later, when first asked."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connection, which ends the process behind it."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is None:
            return
        (_, writer), self._streams, self.child_pid = self._streams, None, None
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            return  # it was lost already

    async def compose(self, job: ComposeJob, timeout_s: float = DEFAULT_TIMEOUT_S) -> Composed:
        """Compose one product.

        Args:
            job: what to compose.
            timeout_s: seconds this product may take, waiting for the connection not counted.

        Raises:
            ComposeError: why there is no picture; `retryable` says whether another try makes sense.

        """
        message = job.to_json()
        message["fields"] = {name: value[:FIELD_MAX_CHARS] for name, value in job.fields.items()}
        header, data = await self._ask({"do": "compose", "job": message}, timeout_s)
        return Composed(data, int(header["width"]), int(header["height"]))

    async def inspect(self, path: Path, timeout_s: float = DEFAULT_TIMEOUT_S) -> PictureInfo:
        """What a picture file is; it is decoded to the end.

        Raises:
            ComposeError: it is no picture, or not one that we take.

        """
        header, _ = await self._ask({"do": "inspect", "path": str(path)}, timeout_s)
        return PictureInfo(header["width"], header["height"], header["transparent"], header["format"])

    async def _ask(self, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        try:
            body = protocol.encode({**request, "timeout_s": timeout_s})
        except ValueError as error:
            raise ComposeError(ComposeCode.COMPOSE_FAILED, "The product's fields are too large.") from error
        async with self._lock:
            done = False
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S + timeout_s):
                    reader, writer = await self._connected()
                    async with asyncio.timeout(timeout_s):
                        header, data = await _exchange(reader, writer, body)
                done = True
            except TimeoutError as error:
                raise ComposeError(ComposeCode.DECODER_TIMEOUT, f"Not done after {timeout_s:g} seconds.") from error
            except (asyncio.IncompleteReadError, OSError, ValueError) as error:
                raise ComposeError(ComposeCode.DECODER_DIED, "The process that decoded the picture died.") from error
            finally:
                if not done:
                    await self.close()
        if "code" in header:
            raise ComposeError(str(header["code"]), str(header["message"]))
        return header, data

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and not self._streams[0].at_eof() and not self._streams[1].is_closing():
            return self._streams
        await self.close()
        for attempt in range(CONNECT_TRIES):
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path), limit=READ_AHEAD)
                self._streams = reader, writer
                self.child_pid = int((await protocol.receive_async(reader))["pid"])
            except (OSError, asyncio.IncompleteReadError):
                await self.close()
                await self._revive(attempt)
            else:
                return self._streams
        raise ComposeError(ComposeCode.COMPOSER_UNAVAILABLE, "The composing process cannot be reached.")

    async def _revive(self, attempt: int) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.ensure)
        await asyncio.sleep(PAUSE_S * attempt)


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[dict[str, Any], bytes]:
    writer.write(body)
    await writer.drain()
    header = await protocol.receive_async(reader)
    count = int(header.get("bytes", 0))
    if not 0 <= count <= protocol.MAX_ANSWER:
        raise ValueError("the answer is too large")
    return header, await reader.readexactly(count)


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
