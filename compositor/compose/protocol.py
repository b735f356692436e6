"""The composing process's wire: length-prefixed JSON, one answer to each request, pixels never.

A request is `length JSON`. An answer is `length JSON` and, if the JSON says `bytes: n`, n bytes of a picture file.
A request that says `to: path` has the file written there instead, and the answer says `wrote: n`. The length is four
bytes, big endian. On connecting the process speaks first: `{"pid": n}`. Requests are answered in their order.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    import socket

HEADER = struct.Struct(">I")
MAX_MESSAGE = 4 * 2**20
MAX_ANSWER = 256 * 2**20
"""Bounds of a message and of a picture file, in bytes."""


class ConnectionLostError(Exception):
    """The other side closed, in the middle of a message or before one."""


def encode(message: dict[str, Any]) -> bytes:
    """A message as it goes over the wire.

    Raises:
        ValueError: it is larger than `MAX_MESSAGE`.

    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError("the message is too large")
    return HEADER.pack(len(body)) + body


def receive(connection: socket.socket) -> dict[str, Any]:
    """The next message of a blocking socket.

    Raises:
        ConnectionLostError: the other side closed.
        ValueError: not a message.

    """
    (length,) = HEADER.unpack(_exactly(connection, HEADER.size))
    return _parse(_exactly(connection, _checked(length)))


async def receive_async(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message of a stream.

    Raises:
        asyncio.IncompleteReadError, OSError: the other side closed.
        ValueError: not a message.

    """
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    return _parse(await reader.readexactly(_checked(length)))


def _checked(length: int) -> int:
    if length > MAX_MESSAGE:
        raise ValueError("the message is too large")
    return length


def _parse(body: bytes) -> dict[str, Any]:
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")  # noqa: TRY004 - one kind of error for whatever is no message
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise ConnectionLostError
        received += piece
    return bytes(received)
