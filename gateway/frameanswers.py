"""How frames, runs and assets are told to their owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compositor.design import Design, default_box

if TYPE_CHECKING:
    from datetime import datetime

    from models.tables import Asset, Frame, Run


def tell_frame(frame: Frame, base: str, latest: Run | None = None) -> dict[str, Any]:
    """A frame; links begin with the configured public address. `box` is where the product goes, clamped."""
    design = Design.model_validate(frame.design)
    asked = design.placement.box
    box = asked.clamped(frame.width, frame.height) if asked else default_box(frame.width, frame.height)
    address = f"{base}/api/frames/{frame.id}"
    return {
        "id": frame.id,
        "name": frame.name,
        "revision": frame.revision,
        "url": address,
        "picture": {
            "url": f"{address}/picture",
            "width": frame.width,
            "height": frame.height,
            "transparent": frame.transparent,
        },
        "layer": design.layer or ("over" if frame.transparent else "under"),
        "box": box.model_dump(mode="json"),
        "design": design.model_dump(mode="json"),
        "sizes": [
            {"name": size.name, "width": size.width, "height": size.height}
            for size in design.output_sizes(frame.width, frame.height)
        ],
        "feed": {
            "kind": "url" if frame.feed_url else "file" if frame.feed_key else None,
            "url": frame.feed_url,
            "mode": frame.feed_mode,
        },
        "output_feed": tell_feed(frame, base),
        "refresh_seconds": frame.refresh_seconds,
        "next_refresh_at": moment(frame.next_refresh_at),
        "webhook_url": frame.webhook_url,
        "latest_run": None if latest is None else {"id": latest.id, "state": latest.state},
        "created_at": moment(frame.created_at),
        "updated_at": moment(frame.updated_at),
    }


def tell_feed(frame: Frame, base: str) -> dict[str, Any] | None:
    """The links of a frame's output feed; None where they were revoked."""
    if frame.feed_token is None:
        return None
    stem = f"{base}/feeds/{frame.feed_token}"
    return {
        "xml": f"{stem}.xml",
        "csv": f"{stem}.csv",
        "published": frame.published_run_id is not None,
        "run_id": frame.published_run_id,
    }


def tell_asset(asset: Asset, base: str) -> dict[str, Any]:
    """A font or a badge."""
    return {
        "id": asset.id,
        "kind": asset.kind,
        "name": asset.name,
        "bytes": asset.bytes,
        "sha256": asset.sha256,
        "url": f"{base}/api/assets/{asset.id}/file",
        "created_at": moment(asset.created_at),
    }


def moment(at: datetime | None) -> str | None:
    """ISO 8601, in UTC."""
    return None if at is None else at.isoformat()
