"""One connection to the composing process: who asked first is answered first, and blamed when the process dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from compositor.compose import protocol
from compositor.compose.errors import ComposeCode, ComposeError

if TYPE_CHECKING:
    from pathlib import Path

READ_AHEAD = 2**20
"""Bytes of an answer that are taken in one go; most files are smaller."""

Answer = tuple[dict[str, Any], bytes]


class Connection:
    """A conversation with one process, in which at most two requests are under way at a time.

    The process reads a request when it has answered the one before. So whatever happens while an answer is awaited
    happened over the request that is first, and the second has not been begun.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pid: int) -> None:
        self.pid = pid
        self._reader = reader
        self._writer = writer
        self._last: asyncio.Event | None = None
        self._asked = 0
        self._given_up = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Connect, and learn which process it is.

        Raises:
            OSError, asyncio.IncompleteReadError: nobody answers there.

        """
        reader, writer = await asyncio.open_unix_connection(str(path), limit=READ_AHEAD)
        try:
            return cls(reader, writer, int((await protocol.receive_async(reader))["pid"]))
        except BaseException:
            writer.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether it may be asked anything more."""
        return not (self._given_up or self._reader.at_eof() or self._writer.is_closing())

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._asked

    async def close(self) -> None:
        """End the conversation, and the process with it."""
        self._given_up = True
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # it was lost already

    async def ask(self, body: bytes, timeout_s: float) -> Answer | None:
        """The answer; None when the connection ended before this request's turn came.

        Args:
            body: an encoded message.
            timeout_s: seconds from when it is this request's turn.

        Raises:
            ComposeError: `decoder_died` or `decoder_timeout`; the connection is closed.

        """
        before, mine = self._last, asyncio.Event()
        self._last = mine
        self._asked += 1
        try:
            self._writer.write(body)
            if before is not None:
                await self._turn(before)
            if self._given_up:
                return None
            try:
                return await self._answer(timeout_s)
            finally:
                if self._given_up:
                    await self.close()
        finally:
            self._asked -= 1
            mine.set()

    async def _turn(self, before: asyncio.Event) -> None:
        """Wait for the request before. Whoever leaves the line has asked already, so none may follow it here."""
        try:
            await before.wait()
        except asyncio.CancelledError:
            self._given_up = True  # the one before, which is not to suffer by it, closes the connection
            if before.is_set():
                await self.close()
            raise

    async def _answer(self, timeout_s: float) -> Answer:
        done = False
        try:
            async with asyncio.timeout(timeout_s):
                await self._writer.drain()
                header = await protocol.receive_async(self._reader)
                count = int(header.get("bytes", 0))
                if not 0 <= count <= protocol.MAX_ANSWER:
                    raise ValueError("the answer is too large")  # noqa: TRY301 - as any other that is none
                data = await self._reader.readexactly(count) if count else b""
            done = True
        except TimeoutError as error:
            raise ComposeError(ComposeCode.DECODER_TIMEOUT, f"Not done after {timeout_s:g} seconds.") from error
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise ComposeError(ComposeCode.DECODER_DIED, "The process that decoded the picture died.") from error
        finally:
            if not done:
                self._given_up = True
        return header, data
