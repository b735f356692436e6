"""A backend that answers at once with a picture of noise, so that the gateway's own work is what is measured."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "bench"
SIDE = 1024
MOST_NOISE = 3 * SIDE


class StandIn:
    """Answers `/runsync` and `/health` as an inference server does. `picture_bytes` is about what a PNG has."""

    def __init__(self, picture_bytes: int) -> None:
        self._picture = noise_png(picture_bytes)
        self._link = "data:image/png;base64," + base64.b64encode(self._picture).decode()

    @property
    def picture_bytes(self) -> int:
        """Bytes of the picture as it came out."""
        return len(self._picture)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve on a free loopback port; gives the address with the endpoint in it."""
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v2/igen/runsync", self._runsync)
        app.router.add_get("/v2/igen/health", self._health)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v2/igen"
        finally:
            await runner.cleanup()

    async def _runsync(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        seed = body["input"]["seed"]
        output = {"images": [self._link], "image_url": self._link, "seed": seed, "seeds": [seed], "receipt": {}}
        job = {"id": request.headers["Idempotency-Key"], "status": "COMPLETED", "output": output}
        return web.json_response(job)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"jobs": {}, "workers": {"idle": 1}})


def noise_png(size: int) -> bytes:
    """A PNG of 1024 by 1024 pixels and about `size` bytes: noise as far as it goes in each row, then black."""
    noise = min(MOST_NOISE, max(1, size // SIDE))
    rows = b"".join(b"\0" + os.urandom(noise) + bytes(MOST_NOISE - noise) for _ in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
