"""What every object store promises."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.store.errors import ObjectMissingError, StoreError
from models.store.keys import check_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
    from datetime import datetime
    from pathlib import Path

PIECE_BYTES = 8 * 2**20
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Size in bytes; `etag` with its quotes, as an HTTP header carries it; `last_modified` in UTC."""

    size: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class NewObject:
    """A file that is to be an object.

    `lasting` is False for what can be had again, and is checked by its hash when it is used: it need not be on the
    disk before it has its name, so that a power failure may leave less of it than it was.
    """

    key: str
    path: Path
    media_type: str
    lasting: bool = True


class ObjectStore(ABC):
    """Objects under keys. Every method checks its key first and may raise InvalidKeyError and StoreError."""

    @abstractmethod
    async def put(self, key: str, data: bytes, *, media_type: str) -> None:
        """Write an object, whole or not at all; it replaces one that is there.

        `media_type` is kept where the store can (S3); a local folder keeps only bytes.
        """

    @abstractmethod
    async def get(self, key: str) -> bytes:
        """Read an object.

        Raises:
            ObjectMissingError: there is none.

        """

    @abstractmethod
    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Read bytes `start` up to, not including, `end`; fewer, or none, where the object ends before.

        Raises:
            ObjectMissingError: there is none.
            ValueError: not 0 <= start <= end.

        """

    @abstractmethod
    async def head(self, key: str) -> ObjectInfo:
        """What is known of an object without reading it.

        Raises:
            ObjectMissingError: there is none.

        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove an object; it is no error when there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> AsyncIterator[str]:
        """The keys in a folder and all below it, in no promised order; `""` for all."""

    async def put_file(self, key: str, path: Path, *, media_type: str) -> None:
        """As `put`, with the content of a file; stores do so in constant memory."""
        await self.put(key, await asyncio.to_thread(path.read_bytes), media_type=media_type)

    async def get_file(self, key: str, path: Path) -> int:
        """Copy an object into a file in pieces of `PIECE_BYTES`; returns its size.

        Raises:
            ObjectMissingError: there is none.
            OSError: the file cannot be written.

        """
        size = (await self.head(key)).size
        await asyncio.to_thread(path.write_bytes, b"")
        for start in range(0, size, PIECE_BYTES):
            piece = await self.get_range(key, start, start + PIECE_BYTES)
            await asyncio.to_thread(_append, path, piece)  # a file held open here would outlive a cancellation
        return size

    async def adopt_file(self, key: str, path: Path, *, media_type: str) -> None:
        """As `put_file`, of a file that nobody writes to again: a store on the same disk need not copy it."""
        await self.put_file(key, path, media_type=media_type)

    async def adopt_files(self, files: Sequence[NewObject]) -> None:
        """As `adopt_file` for each; a store may do them in one go. After an error some may be there."""
        waiting = iter(files)

        async def adopt() -> None:
            for file in waiting:
                await self.adopt_file(file.key, file.path, media_type=file.media_type)

        await _some_at_once(adopt, len(files))

    async def borrow_file(self, key: str, path: Path) -> None:
        """As `get_file`, for reading alone: `path`, which must not be there yet, may share the object's bytes.

        Raises:
            ObjectMissingError, OSError: as `get_file`.

        """
        await self.get_file(key, path)

    async def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Bytes of those of many objects that are there."""
        found: dict[str, int] = {}
        waiting = iter([check_key(key) for key in keys])

        async def look() -> None:
            for key in waiting:
                try:
                    found[key] = (await self.head(key)).size
                except ObjectMissingError:
                    continue

        await _some_at_once(look, len(keys))
        return found

    async def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        try:
            await self.head(key)
        except ObjectMissingError:
            return False
        return True

    async def check(self) -> None:
        """Write, read and delete a small object of our own.

        Raises:
            StoreError: one of the three failed.

        """
        key, data = f"probe/{secrets.token_hex(8)}", secrets.token_bytes(16)
        await self.put(key, data, media_type="application/octet-stream")
        try:
            if await self.get(key) != data:
                raise StoreError("The object store gave back other bytes than were written.")
        finally:
            await self.delete(key)


async def _some_at_once(take: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Have `count` things taken, by as many takers as may be; the first error that one has is raised."""
    try:
        async with asyncio.TaskGroup() as together:
            for _ in range(min(AT_ONCE, count)):
                together.create_task(take())
    except* (StoreError, OSError) as problems:
        raise first_of(problems) from None


def first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first error in a group that is none itself."""
    first: Exception | BaseExceptionGroup[Exception] = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def check_range(start: int, end: int) -> None:
    """Raise ValueError unless 0 <= start <= end."""
    if not 0 <= start <= end:
        raise ValueError(f"not a byte range: {start} to {end}")
