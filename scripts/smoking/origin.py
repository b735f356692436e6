"""Two product pictures on an address of this machine, for a deployment whose workers are allowed to fetch them."""

from __future__ import annotations

import io
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COLOURS = ((200, 30, 30), (30, 160, 60))


class OriginError(Exception):
    """The address cannot be listened on."""


@asynccontextmanager
async def origin(address: str) -> AsyncIterator[list[str]]:
    """Serve on `host:port`; gives the pictures' links.

    Raises:
        OriginError: not such an address, or not one to listen on.

    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise OriginError(f"--origin: {address!r} is not HOST:PORT")
    app = web.Application()
    app.router.add_get("/smoke/{number}.jpg", _picture)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except (OSError, OverflowError) as problem:
            raise OriginError(f"--origin: cannot listen on {address}: {problem}") from None
        yield [f"http://{address}/smoke/{number}.jpg" for number in range(len(COLOURS))]
    finally:
        await runner.cleanup()


async def _picture(request: web.Request) -> web.Response:
    number = request.match_info["number"]
    if number not in ("0", "1"):
        raise web.HTTPNotFound
    file = io.BytesIO()
    Image.new("RGB", (320, 240), COLOURS[int(number)]).save(file, "JPEG")
    return web.Response(body=file.getvalue(), content_type="image/jpeg")
