"""A frame as its maker would have left it, and a store that can be held up, for tests of what goes and what stays."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from models.db import Database, utc_now
from models.store import ObjectStore, content_key
from models.store.local import LocalObjects
from models.tables import Frame, Run, User

if TYPE_CHECKING:
    from pathlib import Path

OWNER = "usr_00000000000000000000000009"


async def seed_frame(db: Database, store: ObjectStore, **values: Any) -> Frame:
    """A frame of OWNER's with a stored picture of its own."""
    async with db.write() as session:
        if await session.get(User, OWNER) is None:
            session.add(User(id=OWNER, name="owner", created_at=utc_now()))
    data = f"picture {values}".encode()
    sha256 = hashlib.sha256(data).hexdigest()
    key = content_key(sha256, ".png")
    await store.put(key, data, media_type="image/png")
    row: dict[str, Any] = {
        "owner_id": OWNER,
        "name": "test",
        "revision": 1,
        "secret": "a secret",
        "picture_key": key,
        "picture_sha256": sha256,
        "width": 200,
        "height": 200,
        "transparent": True,
        "design": {},
        "feed_url": "http://shop.example/feed.xml",
        "feed_mode": "replace",
        "created_at": utc_now(),
        "updated_at": utc_now(),
        **values,
    }
    frame = Frame(**row)
    async with db.write() as session:
        session.add(frame)
    return frame


async def seed_open_run(db: Database, frame: Frame) -> Run:
    """A run under way, without entries."""
    run = Run(
        frame_id=frame.id,
        owner_id=frame.owner_id,
        state="composing",
        trigger="manual",
        snapshot={"picture_key": frame.picture_key},
        partial=False,
        fence=0,
        attempts=0,
        created_at=utc_now(),
    )
    async with db.write() as session:
        session.add(run)
    return run


class HeldStore(LocalObjects):
    """A local store whose deletions begin and then wait until they are let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.deleting = asyncio.Event()
        self.let_go = asyncio.Event()

    async def delete(self, key: str) -> None:
        self.deleting.set()
        await self.let_go.wait()
        await super().delete(key)
