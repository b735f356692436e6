"""From a backend's output to stored pictures: read the output, check each picture, keep it by its content's hash."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.failures import BackendAnswerError, PictureStoreError
from gateway.filekinds import NotPictureError, measure
from gateway.ids import new_id, new_picture_name
from gateway.naming import still_there
from models.db import utc_now
from models.fetch import FetchError
from models.logs import get_logger
from models.store import StoreError, content_key
from models.tables import Picture
from models.wire import SEED_COUNT, OutputFormat

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from gateway.filekinds import FileKind
    from models.fetch import SafeFetcher
    from models.store import ObjectStore
    from models.tables import Generation

DATA_URI = re.compile(r"data:image/(?:png|jpeg|webp);base64,")
STORE_PAUSES_S = (0.2, 1.0)
KEPT_DOCUMENT_CHARS = 128 * 1024
"""A receipt's three prompts may have 20,000 characters each, and there is the rest."""

log = get_logger(__name__)

Seed = Annotated[int, Field(ge=0, lt=SEED_COUNT)]


class BackendOutput(BaseModel):
    """What we read of a job's output. Only `images` must be there, so that worker-sdxl's own output is enough."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    images: list[str] = Field(min_length=1, max_length=16)
    seed: Seed | None = None
    seeds: list[Seed] | None = None
    width: int | None = None
    height: int | None = None
    output_format: OutputFormat | None = None
    demonstration: bool = False
    ignored: list[str] = []
    notes: list[str] = []
    flagged: list[Annotated[int, Field(ge=0, lt=16)]] = Field([], max_length=16)
    receipt: dict[str, Any] | None = None
    timings: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One checked picture. Sizes in pixels."""

    data: bytes
    kind: FileKind
    sha256: str
    width: int
    height: int
    seed: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What becomes of a finished job: what its row keeps of the output, and the rows and bytes of its pictures."""

    output: dict[str, Any]
    pictures: list[Picture]
    drawn: list[Drawn]


class PictureKeeper:
    """Checks and stores the pictures of finished jobs."""

    def __init__(self, store: ObjectStore, fetcher: SafeFetcher, *, max_bytes: int) -> None:
        self._store = store
        self._fetcher = fetcher
        self._max_bytes = max_bytes

    async def keep(self, row: Generation, output: object) -> Kept:
        """Store a job's pictures; their rows are not saved yet.

        Raises:
            BackendAnswerError: the output is not what was asked for.
            PictureStoreError: the store does not take them.

        """
        told = _read_output(row, output)
        seeds = _seeds(row, told)
        drawn = [await self._check(row, told, link, seed) for link, seed in zip(told.images, seeds, strict=True)]
        pictures = [await self._put(row, position, picture) for position, picture in enumerate(drawn)]
        return Kept(_kept(told, seeds, drawn), pictures, drawn)

    async def see_to(self, session: AsyncSession, kept: Kept) -> None:
        """To be called in the transaction that saves the rows, see `still_there`.

        Raises:
            PictureStoreError: a picture is gone and cannot be stored again.

        """
        for picture, drawn in zip(kept.pictures, kept.drawn, strict=True):
            again = partial(self._store.put, picture.object_key, drawn.data, media_type=drawn.kind.media_type)
            try:
                await still_there(session, self._store, picture.object_key, again)
            except StoreError as problem:
                raise PictureStoreError from problem

    async def _check(self, row: Generation, told: BackendOutput, link: str, seed: int) -> Drawn:
        data = await self._bytes(link)
        try:
            kind, width, height = await asyncio.to_thread(measure, data)
        except NotPictureError as problem:
            raise _bad(f"a picture is not whole: {problem}") from None
        wanted = {row.input.get("output_format", "png"), told.output_format or kind.name}
        if wanted != {kind.name}:
            raise _bad(f"a picture is {kind.name}, not {' or '.join(sorted(wanted - {kind.name}))}")
        for side, found in (("width", width), ("height", height)):
            if (size := _wrong_side(row, told, side, found)) is not None:
                raise _bad(f"a picture is {width}x{height}, its {side} not {size}")
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        return Drawn(data, kind, sha256, width, height, seed)

    async def _bytes(self, link: str) -> bytes:
        if (head := DATA_URI.match(link)) is not None:
            try:
                return await asyncio.to_thread(base64.b64decode, link[head.end() :], validate=True)
            except (binascii.Error, ValueError):
                raise _bad("a picture's base64 is malformed") from None
        if not link.startswith(("https://", "http://")):
            raise _bad("a picture is neither a data URI nor a link")
        try:
            fetched = await self._fetcher.get(link, max_wire_bytes=self._max_bytes, max_decoded_bytes=self._max_bytes)
        except FetchError as problem:
            raise _bad(f"a picture's link cannot be fetched: {problem.message}") from problem
        if not fetched.ok:
            raise _bad(f"a picture's link answers {fetched.status}")
        return fetched.body

    async def _put(self, row: Generation, position: int, drawn: Drawn) -> Picture:
        key = content_key(drawn.sha256, f".{drawn.kind.suffix}")
        for pause in (*STORE_PAUSES_S, None):
            try:
                await self._store.put(key, drawn.data, media_type=drawn.kind.media_type)
                break
            except StoreError as problem:
                log.warning("store_put_failed", reason=problem.message, again=pause is not None)
                if pause is None:
                    raise PictureStoreError from problem
                await asyncio.sleep(pause)
        return Picture(
            id=new_id("pic"),
            name=new_picture_name(),
            owner_id=row.owner_id,
            generation_id=row.id,
            position=position,
            object_key=key,
            sha256=drawn.sha256,
            bytes=len(drawn.data),
            width=drawn.width,
            height=drawn.height,
            seed=drawn.seed,
            created_at=utc_now(),
        )


def _read_output(row: Generation, output: object) -> BackendOutput:
    try:
        told = BackendOutput.model_validate(output)
    except ValidationError as problem:
        fields = sorted({".".join(map(str, item["loc"])) or "output" for item in problem.errors()})
        raise _bad(f"the output's shape is wrong at {', '.join(fields)[:200]}") from None
    if len(told.images) != (wanted := row.input.get("num_images", 1)):
        raise _bad(f"{len(told.images)} pictures came, {wanted} were asked for")
    return told


def _wrong_side(row: Generation, told: BackendOutput, side: str, found: int) -> int | None:
    """The pixels that a side should have and does not. What a hires pass or an input picture made is as told."""
    asked = None if row.input.get("hires") is not None else row.input.get(side)
    return next((size for size in (asked, getattr(told, side)) if size not in (None, found)), None)


def _seeds(row: Generation, told: BackendOutput) -> list[int]:
    if told.seeds is not None and len(told.seeds) == len(told.images):
        return told.seeds
    first = row.input["seed"] if told.seed is None else told.seed
    return [(first + index) % SEED_COUNT for index in range(len(told.images))]


def _kept(told: BackendOutput, seeds: list[int], drawn: list[Drawn]) -> dict[str, Any]:
    kept = {
        "seeds": seeds,
        "width": drawn[0].width,
        "height": drawn[0].height,
        "output_format": drawn[0].kind.name,
        "demonstration": told.demonstration,
        "ignored": told.ignored,
        "notes": told.notes,
        "flagged": told.flagged,
        "receipt": told.receipt,
        "timings": told.timings,
    }
    if len(json.dumps(kept, ensure_ascii=False)) > KEPT_DOCUMENT_CHARS:
        raise _bad("the output's receipt is too long")
    return kept


def _bad(reason: str) -> BackendAnswerError:
    log.error("backend_bad_answer", reason=reason)
    return BackendAnswerError(f"The backend's answer could not be used: {reason}.")
