"""Pictures that stand in a request: kept in the store under their row, out of the row itself and of every log.

A row says of such a picture only its SHA-256 (that of the file, as in a receipt) and its size. The object is there
before the row is, so a job that another process takes over finds it, and it lasts as long as the row, unless the row
ends without a picture.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.failures import InputLostError
from models.errors import InvalidInputError
from models.logs import get_logger
from models.store import ObjectMissingError, StoreError
from models.wire import names_of
from models.wire_fields import is_link

if TYPE_CHECKING:
    from models.store import ObjectStore
    from models.tables import Generation
    from models.wire import JobInput

FOLDER = "inputs"
FIELDS = ("image", "mask")
NAMES = frozenset(name for field in FIELDS for name in names_of(field))
READ_PAUSES_S = (0.2, 1.0)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a job asks for, ready for a row and a hash, and the files that are left out of it, by field."""

    asked: dict[str, Any]
    files: dict[str, bytes]


class InputKeeper:
    """Stores, gives back and removes them."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, generation_id: str, files: dict[str, bytes]) -> None:
        """Store a job's pictures, before its row is saved.

        Raises:
            StoreError: the store does not take them.

        """
        for field, data in files.items():
            await self._store.put(input_key(generation_id, field), data, media_type="application/octet-stream")

    async def whole(self, row: Generation) -> dict[str, Any]:
        """The row's input with its pictures in base64, as the backend takes it.

        Raises:
            InputLostError: a picture cannot be read back.

        """
        fields = dict(row.input)
        for field in inline_fields(row.input):
            data = await self._read(input_key(row.id, field))
            fields[field] = (await asyncio.to_thread(base64.b64encode, data)).decode()
        return fields

    async def forget(self, generation_id: str, fields: dict[str, Any]) -> None:
        """Remove what was kept for a job that will never need it; what cannot be removed now is an orphan."""
        try:
            for field in inline_fields(fields):
                await self._store.delete(input_key(generation_id, field))
        except StoreError as problem:
            log.warning("inputs_not_removed", generation_id=generation_id, reason=problem.message)

    async def _read(self, key: str) -> bytes:
        for pause in (*READ_PAUSES_S, None):
            try:
                return await self._store.get(key)
            except StoreError as problem:
                log.warning("input_not_read", reason=problem.message, again=pause is not None)
                if pause is None or isinstance(problem, ObjectMissingError):
                    raise InputLostError from problem
                await asyncio.sleep(pause)
        raise AssertionError("the last pause is None")


def input_key(generation_id: str, field: str) -> str:
    """Where a row's picture lies."""
    return f"{FOLDER}/{generation_id}/{field}"


def inline_fields(fields: dict[str, Any]) -> list[str]:
    """The fields of a row's input whose pictures lie in the store."""
    return [field for field in FIELDS if isinstance(fields.get(field), dict)]


async def take_inputs(job: JobInput) -> Inputs:
    """A job without the pictures that stand in it. Absent is what has its default value.

    Raises:
        InvalidInputError: a picture is neither base64 nor an address.

    """
    inline = {field: source for field in FIELDS if (source := getattr(job, field)) and not is_link(source)}
    left_out = {"request_id", *inline}
    asked = job.model_dump(mode="json", exclude=left_out, exclude_none=True, exclude_defaults=True)
    files: dict[str, bytes] = {}
    for field, source in inline.items():
        files[field], sha256 = await asyncio.to_thread(_decode, field, source)
        asked[field] = {"sha256": sha256, "bytes": len(files[field])}
    return Inputs(asked, files)


def shown(document: Any) -> Any:
    """A request's body as its log may have it: no picture, and of a picture's address not the query, often a key."""
    if not isinstance(document, dict):
        return document
    pictures = {name: _shown(value) for name, value in document.items() if name in NAMES and isinstance(value, str)}
    return {**document, **pictures}


def _shown(source: str) -> str:
    if not is_link(source.strip()):
        return f"<picture, {len(source)} characters>"
    address, mark, _ = source.partition("?")
    return f"{address}{mark}<...>" if mark else address


def _decode(field: str, source: str) -> tuple[bytes, str]:
    """The file of base64 or of a data URL, and its SHA-256; line breaks are let pass, as the backend does."""
    payload = source
    if source[:5].lower() == "data:":
        head, comma, payload = source.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidInputError.for_field(field, "a data URL must be `data:image/...;base64,...`")
    try:
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
        reason = "is neither valid base64, nor a data URL, nor an https address"
        raise InvalidInputError.for_field(field, reason) from None
    return data, hashlib.sha256(data).hexdigest()
