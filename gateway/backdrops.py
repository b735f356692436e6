"""A frame's picture drawn from a prompt: the same way as `/api/generate/`, ledger and all."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.drawing import draw
from gateway.errors import GenerationDeletedError, StillRunningError
from gateway.failures import from_row
from gateway.filekinds import kind_of_key
from gateway.multipart import Upload
from gateway.services import services_of
from models.store import StoreError
from models.tables import GenerationState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request

    from gateway.keys import Caller
    from models.wire import JobInput


@asynccontextmanager
async def draw_backdrop(
    request: Request, caller: Caller, job: JobInput, idempotency_key: str | None = None
) -> AsyncIterator[Upload]:
    """Draw one picture; it lies on the disk until the end of the block, as an upload would.

    With a key, a repeat joins the job that the first request began, or gets its picture.

    Raises:
        GenerationError: it failed, as the ledger keeps it.
        GenerationDeletedError: the key's job was deleted meanwhile.
        StillRunningError: it was not ready when the caller's wait ended; nothing was made of it.
        UnavailableError, BusyError: as `draw`.

    """
    services = services_of(request)
    drawing = await draw(request, caller, job, idempotency_key)
    if drawing.told is None:
        raise StillRunningError(retry_after_s=5)
    if drawing.told.row.deleted_at is not None:
        raise GenerationDeletedError
    if drawing.told.state is not GenerationState.COMPLETED:
        raise from_row(drawing.told.row.error_code, drawing.told.row.error)
    folder = services.settings.uploads
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
    path = folder / secrets.token_hex(16)
    key = drawing.told.pictures[0].object_key
    try:
        try:
            await services.store.get_file(key, path)
            size, sha256 = await asyncio.to_thread(_measure, path)
        except OSError as problem:
            raise StoreError("The picture could not be kept on the disk.") from problem
        suffix = kind_of_key(key).suffix
        yield Upload(path, size, sha256, f"{drawing.row.id}.{suffix}")
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
