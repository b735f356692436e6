"""Checks of a moment, each False rather than an error while a service is not there yet."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

PROBE_TIMEOUT_S = 2.0
ANSWER_BYTES = 512


def http_answers(url: str, host_header: str = "") -> Callable[[], Awaitable[bool]]:
    """A check that a GET of `url` answers 200 (an inference server that is loading answers 204).

    `host_header` is for a server that answers to other names only than the one it is connected by.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    request = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {host_header or parts.netloc}\r\nConnection: close\r\n\r\n"

    async def check() -> bool:
        answer = await _exchange(asyncio.open_connection(host, port), request.encode())
        return answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))

    return check


def redis_answers(socket_path: str | None, port: int, password: str) -> Callable[[], Awaitable[bool]]:
    """A check that a Redis, at a unix socket or else a loopback port, answers PING (it does not while loading)."""
    request = (f"AUTH {password}\r\n" if password else "") + "PING\r\nQUIT\r\n"

    async def check() -> bool:
        if socket_path:
            opening = asyncio.open_unix_connection(socket_path)
        else:
            opening = asyncio.open_connection("127.0.0.1", port)
        return b"+PONG" in await _exchange(opening, request.encode())

    return check


def process_lives(file: Path) -> Callable[[], Awaitable[bool]]:
    """A check that the process whose id stands in `file` lives."""

    async def check() -> bool:
        try:
            os.kill(int(await asyncio.to_thread(file.read_text)), 0)
        except (OSError, ValueError):  # no file yet, half a file, or one of an earlier process
            return False
        return True

    return check


async def _exchange(opening: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]], request: bytes) -> bytes:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await opening
            try:
                writer.write(request)
                return await reader.readexactly(ANSWER_BYTES)
            finally:
                writer.close()
    except asyncio.IncompleteReadError as short:
        return short.partial
    except (OSError, TimeoutError):
        return b""
