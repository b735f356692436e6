"""Flat shapes drawn from signed distances, so that their edges are smooth without supersampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scripts.train_tiny.architecture import NATIVE_SIZE
from scripts.train_tiny.pictures import COLOURS, POSITIONS, SIZES, ShapePicture

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Field = NDArray[np.float32]

_MARGIN = 5.0
_FARTHEST = 36.0
_JITTER = 1.5


def shape_centre(size: str, position: str) -> tuple[float, float]:
    """Return where a shape's middle belongs, in pixels (x, y)."""
    reach = min(_FARTHEST, NATIVE_SIZE / 2 - SIZES[size] - _MARGIN)
    across, down = POSITIONS[position]
    return NATIVE_SIZE / 2 + across * reach, NATIVE_SIZE / 2 + down * reach


def draw_shape(subject: ShapePicture, rng: np.random.Generator) -> Field:
    """Draw a shape picture as (128, 128, 3) values in 0-1, with a little play in place and size."""
    x, y = shape_centre(subject.size, subject.position)
    radius = SIZES[subject.size] * rng.uniform(0.96, 1.04)
    rows, columns = np.mgrid[0:NATIVE_SIZE, 0:NATIVE_SIZE].astype(np.float32) + np.float32(0.5)
    across = (columns - x - rng.uniform(-_JITTER, _JITTER)) / radius
    down = (rows - y - rng.uniform(-_JITTER, _JITTER)) / radius
    distance = _DISTANCES[subject.shape](across, down) * radius
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    inside, outside = (np.array(COLOURS[name], np.float32) / 255 for name in (subject.colour, subject.background))
    return (outside + (inside - outside) * cover).astype(np.float32)


def _circle(x: Field, y: Field) -> Field:
    return (np.hypot(x, y) - 1).astype(np.float32)


def _ring(x: Field, y: Field) -> Field:
    return (np.abs(np.hypot(x, y) - 0.75) - 0.25).astype(np.float32)


def _square(x: Field, y: Field) -> Field:
    return (np.maximum(np.abs(x), np.abs(y)) - 0.9).astype(np.float32)


def _diamond(x: Field, y: Field) -> Field:
    return (np.abs(x) + np.abs(y) - 1.08) / np.sqrt(np.float32(2))


def _cross(x: Field, y: Field) -> Field:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1, y - 0.33), np.maximum(x - 0.33, y - 1))


def _polygon(corners: NDArray[np.float64]) -> Callable[[Field, Field], Field]:
    """Return the exact signed distance to a closed polygon of (n, 2) corners, negative inside."""

    def distance(x: Field, y: Field) -> Field:
        nearest = np.full(x.shape, np.inf, np.float32)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
            crosses = (y < ay) != (y < by)
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= crosses & (x < ax + (y - ay) * ex / ey)
        return np.where(inside, -nearest, nearest)

    return distance


def _star_corners() -> NDArray[np.float64]:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.1, 0.46)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.06], axis=1)


def _heart_corners() -> NDArray[np.float64]:
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
    return np.stack([x / 16, (y - 2.5) / 15.5], axis=1)


_TRIANGLE = np.array([[0.0, -0.95], [1.03, 0.85], [-1.03, 0.85]])

_DISTANCES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon(_TRIANGLE),
    "diamond": _diamond,
    "star": _polygon(_star_corners()),
    "heart": _polygon(_heart_corners()),
    "cross": _cross,
    "ring": _ring,
}
