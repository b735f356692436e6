"""What the composing process is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from compositor.design import Design, OutputSize


@dataclass(frozen=True, slots=True)
class Composed:
    """One finished picture: the encoded file and its size in pixels."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """What a picture file is: upright size in pixels, whether any pixel is less than opaque, format in lower case."""

    width: int
    height: int
    transparent: bool
    format: str


@dataclass(frozen=True, slots=True)
class ComposeJob:
    """One product in one size.

    Attributes:
        source: the product's picture, as fetched.
        frame: the frame's picture.
        transparent: whether the frame has transparency (`PictureInfo.transparent`).
        design: placement, text, badges and file format.
        size: the size that comes out; one of `design.output_sizes(frame width, frame height)`.
        fields: the feed's fields of this product, for texts and conditions; a `g:` prefix makes no difference.
        assets: files of the fonts and badges that the design names, by id.

    """

    source: Path
    frame: Path
    transparent: bool
    design: Design
    size: OutputSize
    fields: dict[str, str] = field(default_factory=dict)
    assets: dict[str, Path] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` turns back."""
        return {
            "source": str(self.source),
            "frame": str(self.frame),
            "transparent": self.transparent,
            "design": self.design.model_dump_json(),
            "size": [self.size.name, self.size.width, self.size.height],
            "fields": self.fields,
            "assets": {name: str(path) for name, path in self.assets.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ComposeJob:
        """The job of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: not what `to_json` makes.

        """
        name, width, height = data["size"]
        return cls(
            source=Path(data["source"]),
            frame=Path(data["frame"]),
            transparent=bool(data["transparent"]),
            design=_design(data["design"]),
            # a frame's own size is whatever it is, so it is not validated as a size that somebody asked for
            size=OutputSize.model_construct(name=str(name), width=int(width), height=int(height)),
            fields=dict(data["fields"]),
            assets={str(key): Path(value) for key, value in data["assets"].items()},
        )


@lru_cache(maxsize=32)
def _design(text: str) -> Design:
    """A run sends one design thousands of times."""
    return Design.model_validate_json(text)
