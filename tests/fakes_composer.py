"""A stand-in for the compositor's children: it reads sizes from PNG headers and draws nothing."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import Composed, PictureInfo

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.job import ComposeJob

PNG = b"\x89PNG\r\n\x1a\n"
TRANSPARENT_TYPES = (4, 6)


class FakeComposer:
    """Takes PNGs by their header, and JPEGs as 100 by 100 pixels. `jobs` are those that it was asked to compose."""

    def __init__(self) -> None:
        self.jobs: list[ComposeJob] = []
        self.fail_with: ComposeError | None = None

    async def inspect(self, path: Path) -> PictureInfo:
        self._fail()
        head = await asyncio.to_thread(lambda: path.read_bytes()[:32])
        if head.startswith(PNG):
            width, height, _, colour = struct.unpack_from(">IIBB", head, 16)
            return PictureInfo(width, height, colour in TRANSPARENT_TYPES, "png")
        if head.startswith(b"\xff\xd8\xff"):
            return PictureInfo(100, 100, transparent=False, format="jpeg")
        if head.startswith(b"GIF8"):
            return PictureInfo(100, 100, transparent=False, format="gif")
        raise ComposeError(ComposeCode.NOT_AN_IMAGE, "The file is not a picture.")

    async def inspect_font(self, path: Path) -> None:
        self._fail()
        assert path.is_file()

    async def compose(self, job: ComposeJob) -> Composed:
        self._fail()
        self.jobs.append(job)
        return Composed(b"\xff\xd8\xffcomposed", job.size.width, job.size.height)

    def _fail(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with
