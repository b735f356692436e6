"""What a backend says of a job under way, checked and bounded before anybody is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREVIEW_MAX_CHARS = 500_000
PREVIEW = re.compile(r"^data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/=]+$")

Count = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, slots=True)
class News:
    """One piece: `progress`, or `preview` of one picture. `place` is what newer news of the same takes."""

    kind: str
    place: str
    message: dict[str, Any]


class ProgressSaid(BaseModel):
    """`output.progress` of a job under way; what a backend adds is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    step: Count = 0
    steps: Count = 0
    eta_s: Annotated[float, Field(ge=0)] | None = None
    queue_position: Count = 0
    preview_seq: Count = 0

    @property
    def news(self) -> News:
        """What watchers are told of it."""
        return news_of("progress", self.model_dump(exclude={"preview_seq"}))


class PreviewSaid(BaseModel):
    """A preview: a small picture as a data URL."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    index: Annotated[int, Field(ge=0, lt=16)]
    seq: Count = 0
    step: Count = 0
    steps: Count = 0
    image: Annotated[str, StringConstraints(max_length=PREVIEW_MAX_CHARS, pattern=PREVIEW)]


def news_of(kind: str, message: dict[str, Any]) -> News:
    """News in their place."""
    return News(kind, f"{kind} {message.get('index', '')}", message)


def progress_in(output: object) -> ProgressSaid | None:
    """The progress in an output under way; None where there is none that can be read."""
    try:
        return ProgressSaid.model_validate(output["progress"]) if isinstance(output, dict) else None
    except (ValidationError, KeyError):
        return None


def previews_in(pieces: Iterable[object]) -> list[News]:
    """The previews among the pieces of a stream."""
    found = []
    for piece in pieces:
        if isinstance(piece, dict) and "preview" in piece:
            try:
                preview = PreviewSaid.model_validate(piece["preview"])
            except ValidationError:
                continue
            found.append(news_of("preview", preview.model_dump()))
    return found
