"""What a run was started with: all that decides its pixels, so that edits of the frame do not reach into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from compositor.design import Design
from models.tables import Asset

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from models.tables import Frame


class AssetRef(BaseModel):
    """An asset as it was when the run began."""

    model_config = ConfigDict(frozen=True)

    key: str
    sha256: str
    kind: str


class Snapshot(BaseModel):
    """The content of `Run.snapshot`."""

    model_config = ConfigDict(frozen=True)

    picture_key: str
    picture_sha256: str
    width: int
    height: int
    transparent: bool
    secret: str
    design: Design
    assets: dict[str, AssetRef]
    feed_mode: Literal["replace", "additional"]
    webhook_url: str | None = None

    def to_row(self) -> dict[str, Any]:
        """As JSON for the row."""
        return self.model_dump(mode="json")


async def take_snapshot(session: AsyncSession, frame: Frame) -> Snapshot:
    """Copy what a run needs from a frame.

    An asset that was deleted since the design named it is left out; composing then says so for each product.
    """
    design = Design.model_validate(frame.design)
    query = select(Asset).where(
        Asset.id.in_(design.assets), Asset.owner_id == frame.owner_id, Asset.deleted_at.is_(None)
    )
    assets = {
        row.id: AssetRef(key=row.object_key, sha256=row.sha256, kind=row.kind) for row in await session.scalars(query)
    }
    return Snapshot(
        picture_key=frame.picture_key,
        picture_sha256=frame.picture_sha256,
        width=frame.width,
        height=frame.height,
        transparent=frame.transparent,
        secret=frame.secret,
        design=design,
        assets=assets,
        feed_mode="additional" if frame.feed_mode == "additional" else "replace",
        webhook_url=frame.webhook_url,
    )
