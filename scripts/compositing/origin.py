"""A shop's server that costs next to nothing: pictures with ETags over kept connections, after a delay to order.

It runs in a process of its own (`python -m scripts.compositing.origin FOLDER COUNT`) and prints its port. Products
share some pictures' pixels, but no bytes: each has a comment of its own in its JPEG, as long as it is not changed.

Paths: `/feed.xml`, `/<number>.jpg`, and `/set/<delay in ms>/<how many products are changed>`.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import cast

import uvloop

HEAD = b'<?xml version="1.0"?>\n<feed xmlns:g="http://base.google.com/ns/1.0" xmlns="http://www.w3.org/2005/Atom">\n'
PATH = re.compile(rb"GET /(?:(\d+)\.jpg|(feed)\.xml|set/(\d+)/(\d+)) ")
TAG = re.compile(rb"\r\nif-none-match: ([^\r]*)", re.IGNORECASE)
SOI = b"\xff\xd8"
COMMENT = b"\xff\xfe"


class Shelf:
    """What there is to be had."""

    def __init__(self, pictures: list[bytes], count: int) -> None:
        self._pictures = [memoryview(picture) for picture in pictures]
        self._count = count
        self.port = 0
        self.delay_s = 0.0
        self.changed = 0

    @property
    def feed(self) -> bytes:
        """All products."""
        link = f"http://127.0.0.1:{self.port}"
        entries = (
            f"<entry><g:id>sku-{number}</g:id><title>Product {number}</title><g:price>10.00 EUR</g:price>"
            f"<g:image_link>{link}/{number}.jpg</g:image_link></entry>\n"
            for number in range(self._count)
        )
        return HEAD + "".join(entries).encode() + b"</feed>\n"

    def answer(self, request: bytes) -> list[bytes | memoryview]:
        """The bytes to send."""
        found = PATH.match(request)
        if found is None:
            return [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]
        number, feed, delay, changed = found.groups()
        if feed:
            return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.feed), self.feed]
        if delay:
            self.delay_s, self.changed = int(delay) / 1000, int(changed)
            return [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
        return self._picture(int(number), request)

    def _picture(self, number: int, request: bytes) -> list[bytes | memoryview]:
        edition = b"%d-%d" % (number, number < self.changed)
        tag = b'"%b"' % edition
        asked = TAG.search(request)
        if asked is not None and asked[1] == tag:
            return [b"HTTP/1.1 304 Not Modified\r\nETag: %b\r\n\r\n" % tag]
        pixels = self._pictures[number % len(self._pictures)]
        comment = COMMENT + (2 + len(edition)).to_bytes(2, "big") + edition
        head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nETag: %b\r\nContent-Length: %d\r\n\r\n"
        return [head % (tag, len(pixels) + len(comment)), SOI, comment, pixels[len(SOI) :]]


class Connection(asyncio.Protocol):
    """One client, which asks again when it has its answer."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's derives from none of asyncio's

    def data_received(self, data: bytes) -> None:
        """Answer a whole request."""
        self._asked += data
        if not self._asked.endswith(b"\r\n\r\n"):
            return
        request, self._asked = self._asked, b""
        loop, delay_s = asyncio.get_running_loop(), self._shelf.delay_s
        answer = self._shelf.answer(request)
        if delay_s:
            loop.call_later(delay_s, self._transport.writelines, answer)
        else:
            self._transport.writelines(answer)


async def serve(folder: Path, count: int) -> None:
    """Serve `count` products made of the pictures in `folder`, for ever."""
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]  # noqa: ASYNC240 - nobody is served yet
    shelf = Shelf(pictures, count)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(shelf), "127.0.0.1", 0)
    shelf.port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"{shelf.port}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
