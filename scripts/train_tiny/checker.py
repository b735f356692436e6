"""Reads a drawn shape picture back: what colour, shape, place and size do the pixels themselves show?

The checker never sees the caption. It measures the background on the picture's rim, splits the picture into
what is nearer to that and what is nearer to the commonest other colour, and lays the outline of the largest
piece over each shape's.
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
    Silhouette = NDArray[np.float32]

FIELDS = ("background", "colour", "shape", "position", "size")

_RIM = 3
_APART = 45.0
"""Pixels farther than this from the background (Euclidean, of 255 a band) may belong to a shape."""
_LEAST_AREA = 60
_OFF_CENTRE = 13.0
"""Pixels between a shape's centroid and the middle beyond which it stands to one side."""
_SIDE = 32
_ALIKE = 0.65
"""The least overlap with a shape that makes an outline that shape."""


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
        shape=_nearest_shape(_silhouette(mask)),
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


def _silhouette(mask: Bytes) -> Silhouette:
    """Bring a piece to a square of fixed side that its bounding box fills: (SIDE, SIDE) shares of 0-1."""
    rows, columns = np.nonzero(mask)
    cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    enlarged = cv2.resize(cut, (_SIDE * 4, _SIDE * 4), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(enlarged, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.float32)


@functools.cache
def _prototypes() -> dict[str, Silhouette]:
    """Take every shape's silhouette once, as the renderer draws it."""
    found = {}
    for shape in SHAPES:
        drawn = draw_shape(ShapePicture(shape, "white", "black", "large"), np.random.default_rng(0))
        found[shape] = _silhouette((drawn[..., 0] > np.float32(0.5)).astype(np.uint8))
    return found


def overlap(one: Silhouette, other: Silhouette) -> float:
    """Return the shared area over the joint area, 0-1."""
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def _nearest_shape(outline: Silhouette) -> str | None:
    """Name the shape that overlaps most with this outline; None when that is too little to be called one."""
    best = max(_prototypes().items(), key=lambda item: overlap(outline, item[1]))
    return best[0] if overlap(outline, best[1]) >= _ALIKE else None


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
