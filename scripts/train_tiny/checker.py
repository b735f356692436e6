"""Reads a drawn shape picture back: what colour, shape, place and size do the pixels themselves show?

The checker never sees the caption. It measures the background on the picture's rim, splits the picture into
what is nearer to that and what is nearer to the commonest other colour, and judges the outline of the
largest piece.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from scripts.train_tiny.draw_shapes import draw_shape
from scripts.train_tiny.pictures import COLOURS, POSITIONS, SHAPES, SIZES, ShapePicture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Vector = NDArray[np.float64]

FIELDS = ("background", "colour", "shape", "position", "size")

_RIM = 3
_APART = 45.0
"""Pixels farther than this from the background (Euclidean, of 255 a band) may belong to a shape."""
_LEAST_AREA = 60
_OFF_CENTRE = 13.0
"""Pixels between a shape's centroid and the middle beyond which it stands to one side."""
_WEIGHTS = np.array([1.0, 1.5, 2.0, 2.0])


@dataclass(frozen=True, slots=True)
class Reading:
    """What the pixels show; `None` throughout when no shape stands out."""

    background: str
    colour: str | None = None
    shape: str | None = None
    position: str | None = None
    size: str | None = None

    def agrees(self, wanted: ShapePicture) -> dict[str, bool]:
        """Tell for each field whether the picture shows what was wanted."""
        return {field: getattr(self, field) == getattr(wanted, field) for field in FIELDS}


def read_picture(picture: Bytes) -> Reading:
    """Read a (128, 128, 3) sRGB picture."""
    values = picture.astype(np.float64)
    edges = (values[:_RIM], values[-_RIM:], values[:, :_RIM], values[:, -_RIM:])
    rim = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    ground = np.median(rim, axis=0)
    mask = _shape_mask(values, ground)
    if mask is None:
        return Reading(nearest_colour(ground))
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8)).astype(bool)
    body = values[inner if inner.any() else mask.astype(bool)]
    return Reading(
        background=nearest_colour(ground),
        colour=nearest_colour(np.median(body, axis=0)),
        shape=_nearest_shape(_outline(mask)),
        position=_place(mask),
        size=_size(mask),
    )


def nearest_colour(value: Vector) -> str:
    """Name the colour nearest to an sRGB value of 0-255."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(value - np.array(COLOURS[name]))))


def _shape_mask(values: Vector, ground: Vector) -> Bytes | None:
    """Return the largest piece that is not background as a 0/1 mask, or None."""
    away = np.linalg.norm(values - ground, axis=2)
    clear = away > _APART
    if clear.sum() < _LEAST_AREA:
        return None
    body = np.median(values[clear], axis=0)
    nearer = (np.linalg.norm(values - body, axis=2) < away).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(nearer, connectivity=8)
    if count <= 1:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    if stats[largest, cv2.CC_STAT_AREA] < _LEAST_AREA:
        return None
    return (labels == largest).astype(np.uint8)


def _outline(mask: Bytes) -> Vector:
    """Measure an outline: its share of its box, of its hull, its hole, and how low its weight hangs."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    _, top, width, height = cv2.boundingRect(contour)
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, [contour], -1, 1, thickness=cv2.FILLED)
    hull = np.zeros_like(mask)
    cv2.fillConvexPoly(hull, cv2.convexHull(contour), 1)
    area = float(filled.sum())
    middle = float(np.nonzero(filled)[0].mean())
    hang = (middle - (top + (height - 1) / 2)) / height
    hole = 1 - float((mask & filled).sum()) / area
    return np.array([area / (width * height), area / float(hull.sum()), hole, hang])


@functools.cache
def _prototypes() -> dict[str, Vector]:
    """Measure every shape at every size once, as the renderer draws it."""
    found = {}
    for shape in SHAPES:
        measured = []
        for size in SIZES:
            drawn = draw_shape(ShapePicture(shape, "white", "black", size), np.random.default_rng(0))
            measured.append(_outline((drawn[..., 0] > np.float32(0.5)).astype(np.uint8)))
        found[shape] = np.mean(measured, axis=0)
    return found


def _nearest_shape(outline: Vector) -> str:
    known = _prototypes()
    return min(known, key=lambda shape: float(np.linalg.norm((outline - known[shape]) * _WEIGHTS)))


def _place(mask: Bytes) -> str:
    rows, columns = np.nonzero(mask)
    across, down = columns.mean() + 0.5 - mask.shape[1] / 2, rows.mean() + 0.5 - mask.shape[0] / 2
    direction = tuple(int(np.sign(offset)) if abs(offset) > _OFF_CENTRE else 0 for offset in (across, down))
    return next(name for name, place in POSITIONS.items() if place == direction)


def _size(mask: Bytes) -> str:
    """Judge the size by the area of the box around the shape, whose side is about twice the half-width."""
    rows, columns = np.nonzero(mask)
    half = 0.5 * float(np.sqrt((np.ptp(rows) + 1) * (np.ptp(columns) + 1)))
    return min(SIZES, key=lambda name: abs(np.log(half / SIZES[name])))
