"""Pixels to PNG, on threads of their own so that neither the engine nor the event loop waits for zlib."""

from __future__ import annotations

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

Given = TypeVar("Given")
Made = TypeVar("Made")

MEDIA_TYPE = "image/png"
DATA_URL_PREFIX = f"data:{MEDIA_TYPE};base64,"
COMPRESS_LEVEL = 4  # zlib's level; measured on 1024x1024: 2 is 40 % faster and 13 % larger, 6 no smaller


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [height, width, 3] in RGB to a PNG without any metadata. The same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """The PNG as `data:image/png;base64,...`."""
    return DATA_URL_PREFIX + base64.b64encode(png).decode("ascii")


class PictureEncoder:
    """A small pool of threads that encode pictures."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="igen-png")

    async def run(self, work: Callable[[Given], Made], given: Given) -> Made:
        """Any other work on pixels or large texts, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, given)

    async def png(self, pixels: NDArray[np.uint8]) -> bytes:
        """Encode off the event loop."""
        return await self.run(encode_png, pixels)

    async def data_url(self, png: bytes) -> str:
        """Base64 off the event loop: a large picture takes milliseconds."""
        return await self.run(data_url, png)

    def close(self) -> None:
        """Drop what is queued; what runs is left to finish."""
        self._pool.shutdown(wait=False, cancel_futures=True)
