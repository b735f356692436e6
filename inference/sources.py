"""A caller's pictures, from base64 in the request or from an address, to what the engine starts from.

Everything is bounded: bytes on the wire, pixels, seconds, pictures in work at once. Addresses go through the safe
fetch, decoding happens on threads of its own.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from inference.inputs import BadPictureError, InputPictures, check_picture, read_inputs
from models.errors import FieldProblem
from models.fetch import FetchBlockedError, FetchError
from models.fetch.policy import parse_target
from models.wire_fields import is_link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference.bounds import Bounds
    from models.fetch import FetchPolicy, SafeFetcher
    from models.wire import JobInput

Made = TypeVar("Made")

FILE_MAX_BYTES = 20_000_000
FETCH_TIMEOUT_S = 20.0
AT_ONCE = 4  # requests whose files are in memory; each holds two at most
DECODE_THREADS = 2


def decoding_threads() -> ThreadPoolExecutor:
    """The threads on which pictures are decoded; few, since each may hold a large one."""
    return ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="igen-decode")


class PictureSources:
    """Reads the pictures that requests bring or name."""

    def __init__(self, fetcher: SafeFetcher, policy: FetchPolicy, bounds: Bounds, pool: ThreadPoolExecutor) -> None:
        """Take collaborators.

        Args:
            fetcher: the way to addresses.
            policy: the bounds of addresses.
            bounds: of what is drawn and read.
            pool: threads that decode; its owner closes it.

        """
        self._fetcher = fetcher
        self._policy = policy
        self._bounds = bounds
        self._room = asyncio.Semaphore(AT_ONCE)
        self._pool = pool

    def problems(self, sources: dict[str, str | None]) -> list[FieldProblem]:
        """What can be said against addresses without the network; `sources` by the field's name."""
        found = []
        for field, source in sources.items():
            if source is not None and is_link(source):
                try:
                    self._check_link(source)
                except FetchBlockedError as blocked:
                    found.append(FieldProblem(field, blocked.message))
        return found

    async def inputs(self, wanted: JobInput) -> InputPictures | None:
        """The request's picture and mask, of the size that is drawn; None where it has none.

        Raises:
            BadPictureError: it cannot be fetched or used.

        """
        if wanted.image is None:
            return None
        async with self._room:
            image = await self._bytes("image", wanted.image)
            mask = None if wanted.mask is None else await self._bytes("mask", wanted.mask)
            return await self._run(partial(read_inputs, image, mask, wanted.width, wanted.height, self._bounds))

    async def check_inline(self, wanted: JobInput) -> None:
        """Look through what stands in the request itself, where something else has to be fetched first.

        Raises:
            BadPictureError: it cannot be used.

        """
        for field, source in (("image", wanted.image), ("mask", wanted.mask)):
            if source is not None and not is_link(source):
                async with self._room:
                    data = await self._bytes(field, source)
                    await self._run(partial(check_picture, data, field, self._bounds.max_input_pixels))

    async def files(self, field: str, given: Sequence[str]) -> tuple[bytes, ...]:
        """The files of drawn pictures, each of which can be decoded; together they have at most 20 MB.

        Raises:
            BadPictureError: one cannot be fetched or used.

        """
        read: list[bytes] = []
        async with self._room:
            for source in given:
                data = await self._bytes(field, source)
                if sum(map(len, read)) + len(data) > FILE_MAX_BYTES:
                    raise BadPictureError(field, f"are together larger than {FILE_MAX_BYTES // 1_000_000} MB")
                await self._run(partial(check_picture, data, field, self._bounds.max_hires_pixels))
                read.append(data)
        return tuple(read)

    async def _run(self, work: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _bytes(self, field: str, source: str) -> bytes:
        if is_link(source):
            return await self._fetch(field, source)
        return await self._run(partial(from_base64, field, source))

    def _check_link(self, url: str) -> None:
        target = parse_target(url, self._policy)
        if target.url.scheme != "https" and not target.allowed:
            raise FetchBlockedError("The address must begin with https://.")

    async def _fetch(self, field: str, url: str) -> bytes:
        try:
            self._check_link(url)
            fetched = await self._fetcher.get(
                url,
                total_timeout_s=FETCH_TIMEOUT_S,
                max_wire_bytes=FILE_MAX_BYTES,
                max_decoded_bytes=FILE_MAX_BYTES,
            )
            self._check_link(fetched.url)  # where redirects led
        except FetchError as problem:
            raise BadPictureError(field, f"cannot be fetched: {problem.message}") from None
        if not fetched.ok:
            raise BadPictureError(field, f"cannot be fetched: the address answers {fetched.status}")
        return fetched.body


def from_base64(field: str, source: str) -> bytes:
    """The bytes of base64 or of a data URL; line breaks are let pass.

    Raises:
        BadPictureError: it is neither, or more than 20 MB.

    """
    payload = source
    if source[:5].lower() == "data:":
        head, comma, payload = source.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise BadPictureError(field, "a data URL must be `data:image/...;base64,...`")
    try:
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
        raise BadPictureError(field, "is neither valid base64, nor a data URL, nor an https address") from None
    if len(data) > FILE_MAX_BYTES:
        raise BadPictureError(field, f"is larger than {FILE_MAX_BYTES // 1_000_000} MB")
    return data
