"""A scripted HTTP server on a loopback port, raw enough to break every rule of the protocol on purpose."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    Answer = bytes | Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Seen:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Origin:
    """Answers each path with the bytes or the coroutine that `answers` has for it; closes after each answer.

    With `keep` connections stay open, as a real shop's do, but for answers in bytes that say `Connection: close`;
    and `seen` stays empty.
    """

    def __init__(
        self, answers: dict[str, Answer] | None = None, tls: ssl.SSLContext | None = None, *, keep: bool = False
    ) -> None:
        self.answers = answers or {}
        self.seen: list[Seen] = []
        self.keep = keep
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(await _read_request(reader), writer):
                continue
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up, which many of these tests want
        finally:
            writer.close()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        """Answer once; whether the connection stays."""
        if not self.keep:
            self.seen.append(seen)
        answer = self.answers.get(seen.path.partition("?")[0], answer_with(b"nothing here", status="404 Not Found"))
        if not isinstance(answer, bytes):
            await answer(seen, writer)
            return self.keep
        head, blank, body = answer.partition(b"\r\n\r\n")
        writer.write(head + blank + (b"" if seen.method == "HEAD" else body))
        await writer.drain()
        return self.keep and b"\r\nConnection: close" not in head


def answer_with(
    body: bytes, *headers: str, status: str = "200 OK", length: int | None = None, close: bool = True
) -> bytes:
    """A whole answer; `length` is the Content-Length to claim, `close` says so."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def redirect_to(location: str, status: str = "302 Found") -> bytes:
    """A redirect."""
    return answer_with(b"moved", f"Location: {location}", status=status)


async def _read_request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Seen(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
