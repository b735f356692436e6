"""JPEG by way of turbojpeg's n/8 scaling and OpenCV's vectorised bilinear filter, where both are installed.

Pillow reaches only 1/2, 1/4 and 1/8 of libjpeg's scaled decodings and resamples without vector instructions. Decoding
at the next n/8 above the wanted size leaves so little to shrink that a bilinear filter is enough: about 43 dB from
the full-quality result, at about 1.2 times the rate of the fastest of the usual ways (`scripts/bench_compositor`).
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from compositor.compose.placement import Size, Window

MAX_SHRINK = 1.45
"""Beyond this a bilinear filter skips pixels; neighbouring steps of n/8 are at most 1.5 apart from 2/8 on."""

Pixels = Any
"""A NumPy array of height x width x 4 bytes: red, green, blue, nothing."""


class CutOffError(ValueError):
    """The file ends before its picture does; decoders fill what is missing with grey."""


class UndecodableError(ValueError):
    """Not a file for this decoder; Pillow may know better."""


@lru_cache(maxsize=1)
def _libraries() -> tuple[Any, Any] | None:
    try:
        opencv, simplejpeg = importlib.import_module("cv2"), importlib.import_module("simplejpeg")
    except ImportError:
        return None
    opencv.setNumThreads(1)  # processes are what we have many of
    return opencv, simplejpeg


def available() -> bool:
    """Whether both libraries are installed; loads them."""
    return _libraries() is not None


def decode(data: bytes, least: Size) -> Pixels:
    """Decode at the smallest n/8 of a size that is no smaller than `least` (width, height).

    Raises:
        CutOffError: the file is truncated.
        UndecodableError: anything else is wrong with it.

    """
    libraries = _libraries()
    assert libraries is not None  # noqa: S101 - callers ask `available` first
    try:
        return libraries[1].decode_jpeg(data, "RGBX", min_width=least[0], min_height=least[1])
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise CutOffError("the file is cut off") from error
        raise UndecodableError(str(error)) from error


def as_image(pixels: Pixels) -> Image.Image:
    """The pixels as a picture of Pillow's."""
    height, width, _ = pixels.shape
    return Image.frombytes("RGB", (width, height), pixels, "raw", "RGBX")


def shrunk(pixels: Pixels, window: Window, size: Size) -> Image.Image | None:
    """`window` of the pixels at `size`; None where more than a bilinear filter is called for."""
    libraries = _libraries()
    assert libraries is not None  # noqa: S101 - callers ask `available` first
    left, top, right, bottom = (round(edge) for edge in window)
    wide, high = right - left, bottom - top
    if not (size[0] <= wide <= size[0] * MAX_SHRINK and size[1] <= high <= size[1] * MAX_SHRINK):
        return None
    opencv = libraries[0]
    return as_image(opencv.resize(pixels[top:bottom, left:right], size, interpolation=opencv.INTER_LINEAR))
