"""How a generation is told to its owner. The same row always reads the same, so a replay is what was first said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import GenerationDeletedError
from gateway.failures import from_row
from gateway.filekinds import kind_of_key
from models.errors import envelope
from models.tables import GenerationState

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.ledger import Told
    from models.errors import IgenError
    from models.tables import Picture

STATUS = {
    GenerationState.ACCEPTED: "running",
    GenerationState.SUBMITTED: "running",
    GenerationState.COMPLETED: "success",
    GenerationState.FAILED: "error",
}


def tell_success(told: Told, public_base: str) -> dict[str, Any]:
    """The answer about a completed generation; links begin with the configured public address."""
    output = told.row.output or {}
    flagged = output.get("flagged", [])
    images = [_image(picture, public_base, flagged) for picture in told.pictures]
    receipt = output.get("receipt") or {}
    return {
        "status": "success",
        "id": told.row.id,
        "image_url": images[0]["url"],
        "images": images,
        "seed": images[0]["seed"],
        "seeds": output.get("seeds", []),
        "width": images[0]["width"],
        "height": images[0]["height"],
        "output_format": output.get("output_format", "png"),
        "checkpoint": receipt.get("checkpoint"),
        "demonstration": output.get("demonstration", False),
        "ignored": output.get("ignored", []),
        "notes": output.get("notes", []),
        "flagged": flagged,
        "receipt": output.get("receipt"),
        "timings": {**output.get("timings", {}), "total_s": _seconds(told)},
        "created_at": told.row.created_at.isoformat(),
    }


def tell(told: Told, public_base: str) -> dict[str, Any]:
    """A generation in whatever state it is: `running`, `success` or `error`."""
    if told.row.deleted_at is not None:
        return {"status": "error", **_known(told), **_error(told, GenerationDeletedError())}
    if told.state is GenerationState.COMPLETED:
        return {**tell_success(told, public_base), "input": told.row.input}
    known = {"status": STATUS[told.state], **_known(told)}
    if told.state is GenerationState.FAILED:
        return {**known, **_error(told, from_row(told.row.error_code, told.row.error))}
    return known


def _known(told: Told) -> dict[str, Any]:
    """What is told of every row."""
    return {"id": told.row.id, "input": told.row.input, "created_at": told.row.created_at.isoformat()}


def _error(told: Told, error: IgenError) -> dict[str, Any]:
    return {"error": envelope(error, told.row.request_id)["error"]}


def _image(picture: Picture, public_base: str, flagged: Collection[int]) -> dict[str, Any]:
    kind = kind_of_key(picture.object_key)
    return {
        "url": f"{public_base}/media/generated/{picture.name}.{kind.suffix}",
        "media_type": kind.media_type,
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
        "bytes": picture.bytes,
        "flagged": picture.position in flagged,
    }


def _seconds(told: Told) -> float | None:
    if told.row.finished_at is None:
        return None
    return round((told.row.finished_at - told.row.created_at).total_seconds(), 3)
