"""Long objects on their way to callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from models.store import ObjectStore

PIECE_BYTES = 256 * 1024


async def pieces(store: ObjectStore, key: str, start: int, end: int) -> AsyncIterator[bytes]:
    """Bytes `start` up to `end` of an object, a piece at a time."""
    for first in range(start, end, PIECE_BYTES):
        yield await store.get_range(key, first, min(first + PIECE_BYTES, end))
