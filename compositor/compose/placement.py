"""Geometry: where things lie in an output, and which part of a picture is seen. Numbers only, no pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compositor.design import Anchor, Box, Fit

if TYPE_CHECKING:
    from compositor.design import OutputSize

Size = tuple[int, int]
Window = tuple[float, float, float, float]
"""Left, top, right, bottom of the part that is seen, in pixels of the picture."""

_SIDE = {
    Anchor.CENTER: (0.5, 0.5),
    Anchor.TOP: (0.5, 0.0),
    Anchor.BOTTOM: (0.5, 1.0),
    Anchor.LEFT: (0.0, 0.5),
    Anchor.RIGHT: (1.0, 0.5),
    Anchor.TOP_LEFT: (0.0, 0.0),
    Anchor.TOP_RIGHT: (1.0, 0.0),
    Anchor.BOTTOM_LEFT: (0.0, 1.0),
    Anchor.BOTTOM_RIGHT: (1.0, 1.0),
}


def box_of(x: int, y: int, width: int, height: int) -> Box:
    """A box that is not held to the bounds of one that somebody asked for."""
    return Box.model_construct(x=x, y=y, width=width, height=height)


@dataclass(frozen=True, slots=True)
class View:
    """How an output of one size shows the frame: scaled by `scale` to cover it, from its middle.

    `left` and `top` are where the scaled frame begins, in pixels of the output: zero or less.
    """

    width: int
    height: int
    scale: float
    left: float
    top: float

    @classmethod
    def of(cls, frame: Size, size: OutputSize) -> View:
        """The view of a frame of `frame` pixels in an output of `size`."""
        scale = max(size.width / frame[0], size.height / frame[1])
        left, top = (size.width - frame[0] * scale) / 2, (size.height - frame[1] * scale) / 2
        return cls(size.width, size.height, scale, left, top)

    def length(self, value: float) -> int:
        """A length of the frame in pixels of the output."""
        return round(value * self.scale)

    def window(self) -> Window:
        """The part of the frame that is seen, in its own pixels."""
        left, top = -self.left / self.scale, -self.top / self.scale
        return left, top, left + self.width / self.scale, top + self.height / self.scale

    def whole(self, box: Box) -> Box:
        """`box` in the output; what would be cut off is moved, and if need be shrunk, into sight."""
        return self._mapped(box).clamped(self.width, self.height)

    def seen(self, box: Box) -> Box:
        """The part of `box` that the output shows; `whole` where it shows none."""
        mapped = self._mapped(box)
        left, top = max(0, mapped.x), max(0, mapped.y)
        right, bottom = min(self.width, mapped.x + mapped.width), min(self.height, mapped.y + mapped.height)
        if right <= left or bottom <= top:
            return self.whole(box)
        return box_of(left, top, right - left, bottom - top)

    def _mapped(self, box: Box) -> Box:
        # both edges are rounded, not the lengths, so that boxes that touch still touch
        left, top = round(self.left + box.x * self.scale), round(self.top + box.y * self.scale)
        right = round(self.left + (box.x + box.width) * self.scale)
        bottom = round(self.top + (box.y + box.height) * self.scale)
        return box_of(left, top, max(1, right - left), max(1, bottom - top))


@dataclass(frozen=True, slots=True)
class Fitted:
    """A picture in its box: `window` of it, resampled to `width` x `height`, `x` and `y` from the box's corner."""

    x: int
    y: int
    width: int
    height: int
    window: Window


def fit(picture: Size, box: Size, how: Fit, anchor: Anchor) -> Fitted:
    """Put a picture into a box of `box` pixels."""
    wide, high = picture
    across, down = _SIDE[anchor]
    if how is Fit.STRETCH:
        return Fitted(0, 0, *box, (0, 0, wide, high))
    if how is Fit.CONTAIN:
        scale = min(box[0] / wide, box[1] / high)
        width, height = min(box[0], max(1, round(wide * scale))), min(box[1], max(1, round(high * scale)))
        x, y = math.floor((box[0] - width) * across), math.floor((box[1] - height) * down)
        return Fitted(x, y, width, height, (0, 0, wide, high))
    scale = max(box[0] / wide, box[1] / high)
    seen_wide, seen_high = min(wide, box[0] / scale), min(high, box[1] / scale)
    left, top = (wide - seen_wide) * across, (high - seen_high) * down
    return Fitted(0, 0, *box, (left, top, left + seen_wide, top + seen_high))
