"""The inside of thick outlines around letters.

FreeType's stroker goes once around a letter's counter, and where the line is thicker than half of that, as in a small
`o`, it leaves a hole. Whatever lies nearer to a letter than the line is thick belongs to the line; OpenCV tells how
near a pixel lies. Edges are left to FreeType, which draws them smooth.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from PIL import Image

EDGE = 1.5
"""Pixels at the line's rim that FreeType blends."""


@lru_cache(maxsize=1)
def _libraries() -> tuple[Any, Any] | None:
    try:
        opencv, numpy = importlib.import_module("cv2"), importlib.import_module("numpy")
    except ImportError:
        return None
    opencv.setNumThreads(1)  # processes are what we have many of
    return opencv, numpy


def inside(letters: Image.Image, thickness: int) -> Image.Image | None:
    """Where a line of `thickness` pixels around `letters` (L) is solid, as a mask; None where nobody can tell."""
    libraries = _libraries()
    if libraries is None or thickness <= EDGE or letters.getbbox() is None:
        return None
    opencv, numpy = libraries
    free = numpy.where(numpy.asarray(letters) > 127, 0, 255).astype("uint8")  # noqa: PLR2004 - half covered
    distance = opencv.distanceTransform(free, opencv.DIST_L2, opencv.DIST_MASK_PRECISE)
    return Image.fromarray(numpy.where(distance <= thickness - EDGE, 255, 0).astype("uint8"))
