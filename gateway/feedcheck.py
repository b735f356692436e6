"""A look into an uploaded feed before it is kept, so that its sender hears at once what no run could read."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

from compositor.feed.reader import FeedError, FeedLimits, open_feed
from gateway.errors import UploadRefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.multipart import Upload
    from gateway.settings import GatewaySettings

WHOLE_UP_TO_BYTES = 16 * 1024 * 1024
"""A longer file is looked at up to `FIRST_ENTRIES` only: its run reads it to the end and reports what it finds."""
FIRST_ENTRIES = 1000


async def check_feed(upload: Upload, settings: GatewaySettings) -> None:
    """Read an uploaded feed, or its beginning.

    Raises:
        UploadRefusedError: it cannot be read, with the code that a run would end with.

    """
    most = None if upload.bytes <= WHOLE_UP_TO_BYTES else FIRST_ENTRIES
    limits = FeedLimits(max_bytes=settings.feed_max_bytes)
    try:
        await asyncio.to_thread(_read, upload.path, limits, most)
    except FeedError as problem:
        raise UploadRefusedError("feed", problem.code, problem.message) from None


def _read(path: Path, limits: FeedLimits, most: int | None) -> None:
    for _ in islice(open_feed(path, limits), most):
        continue
