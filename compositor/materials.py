"""The files that every product of a run needs: the frame's picture, fonts and badges, kept from job to job."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compositor.errors import RunFailedError
from models.store import ObjectMissingError

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.snapshot import Snapshot
    from models.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Materials:
    """Paths of the frame's picture and of the design's assets, by id."""

    frame: Path
    assets: dict[str, Path]


async def gather_materials(store: ObjectStore, folder: Path, snapshot: Snapshot) -> Materials:
    """Bring a run's files into `folder`, named by content; those that are there already stay.

    An asset whose object is gone is left out, which composing tells for each product that needs it.

    Raises:
        RunFailedError: the frame's picture is gone.
        StoreError: the store does not answer.

    """
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    frame = await _bring(store, folder, snapshot.picture_key, snapshot.picture_sha256)
    if frame is None:
        raise RunFailedError("frame_missing", "The frame's picture is gone from the store.")
    found = {name: await _bring(store, folder, asset.key, asset.sha256) for name, asset in snapshot.assets.items()}
    return Materials(frame, {name: path for name, path in found.items() if path is not None})


async def _bring(store: ObjectStore, folder: Path, key: str, sha256: str) -> Path | None:
    path = folder / sha256
    if await asyncio.to_thread(_touch, path):
        return path
    part = folder / f".{sha256}.{secrets.token_hex(4)}"
    try:
        await store.get_file(key, part)
    except ObjectMissingError:
        return None
    await asyncio.to_thread(part.replace, path)
    return path


def _touch(path: Path) -> bool:
    """Whether the file is there; its time says when it was last used."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
