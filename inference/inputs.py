"""From the bytes of a caller's picture to what the engine starts from: decoded safely, upright, RGB, in size.

Blocking work for a thread of its own. The header is read first and judged before anything is decoded.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.bounds import Bounds

FORMATS = ("PNG", "JPEG", "WEBP")
MULTIPLE = 8  # of every side
THRESHOLD = 128  # from here on a mask is white
SHAPE_TOLERANCE = 0.02  # by which a mask's ratio of sides may differ from its picture's
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
ORIENTATION_TAG = 0x0112
BROKEN = (
    # what Pillow's decoders raise on damaged files; MemoryError is left to end the request as a fault
    *(OSError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError, AttributeError),
    *(struct.error, zlib.error, EOFError, NotImplementedError),
)


class BadPictureError(Exception):
    """A caller's picture cannot be used; the text says why. `field` is `image` or `mask`."""

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(f"{field}: {reason}")


@dataclass(frozen=True, slots=True, eq=False)
class InputPictures:
    """What a picture starts from: `pixels` uint8 [height, width, 3], `mask` uint8 [height, width], 0 or 255.

    The hashes are over the files as they were given.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    mask: NDArray[np.uint8] | None = None
    mask_sha256: str | None = None

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        return self.pixels.nbytes + (0 if self.mask is None else self.mask.nbytes)


def read_inputs(
    image: bytes, mask: bytes | None, width: int | None, height: int | None, bounds: Bounds
) -> InputPictures:
    """Decode a picture and its mask and fit both to the size that will be drawn.

    Args:
        image: a PNG, JPEG or WebP file.
        mask: the same, white where the picture is drawn anew.
        width: in pixels; None takes the picture's own.
        height: in pixels; None takes the picture's own.
        bounds: of the picture to draw, and of the one to read.

    Raises:
        BadPictureError: not decodable, too large, or the two do not fit together.

    """
    picture = decode(image, "image", bounds.max_input_pixels)
    size = size_for(picture.size, width, height, bounds)
    pixels = np.asarray(fit(_over(picture, "white"), size), np.uint8)
    if mask is None:
        return InputPictures(pixels, _sha256(image))
    shape = decode(mask, "mask", bounds.max_input_pixels)
    _check_shape(picture.size, shape.size)
    return InputPictures(pixels, _sha256(image), _mask_of(shape, size), _sha256(mask))


def read_picture(data: bytes, field: str, max_pixels: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] of one file, in its own size.

    Raises:
        BadPictureError: as `decode`.

    """
    return np.asarray(_over(decode(data, field, max_pixels), "white"), np.uint8)


def check_picture(data: bytes, field: str, max_pixels: int) -> None:
    """Decode a file and let it go.

    Raises:
        BadPictureError: as `decode`.

    """
    decode(data, field, max_pixels)


def decode(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """One file's first frame, upright: RGB, or RGBA where anything of it is transparent.

    Raises:
        BadPictureError: not a whole PNG, JPEG or WebP, or of more than `max_pixels`.

    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise BadPictureError(
                    field, f"is {opened.width}x{opened.height}; at most {max_pixels} pixels are taken"
                )
            opened.load()
            return _upright(_eight_bit(opened))
    except UnidentifiedImageError:
        raise BadPictureError(field, "is no PNG, JPEG or WebP") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPictureError(field, f"is too large; at most {max_pixels} pixels are taken") from None
    except BROKEN:
        raise BadPictureError(field, "is damaged or not whole") from None


def size_for(given: tuple[int, int], width: int | None, height: int | None, bounds: Bounds) -> tuple[int, int]:
    """Width and height to draw for a picture of the size `given`, in pixels.

    What the caller named stays as it is. The rest keeps the picture's ratio of sides, is a multiple of 8 and within
    the server's bounds; a picture that is too large or too small is scaled.
    """
    if width is not None and height is not None:
        return width, height
    if width is not None or height is not None:
        ratio = given[0] / given[1]
        return (
            width or _side((height or 0) * ratio, bounds),
            height or _side((width or 0) / ratio, bounds),
        )
    scale = min(1.0, bounds.max_side / max(given), math.sqrt(bounds.max_pixels / (given[0] * given[1])))
    scale = max(scale, min(bounds.min_side / min(given), bounds.max_side / max(given)))
    own = [_side(side * scale, bounds) for side in given]
    while own[0] * own[1] > bounds.max_pixels and max(own) > bounds.min_side:
        own[own.index(max(own))] -= MULTIPLE
    return own[0], own[1]


def fit(
    picture: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The picture scaled until it covers `size`, and cut to it about its centre."""
    if picture.size == size:
        return picture
    scale = max(size[0] / picture.width, size[1] / picture.height)
    used = (min(picture.width, size[0] / scale), min(picture.height, size[1] / scale))
    left, top = (picture.width - used[0]) / 2, (picture.height - used[1]) / 2
    return picture.resize(size, resample, box=(left, top, left + used[0], top + used[1]), reducing_gap=3.0)


def _side(wanted: float, bounds: Bounds) -> int:
    smallest = -(-bounds.min_side // MULTIPLE) * MULTIPLE
    largest = bounds.max_side // MULTIPLE * MULTIPLE
    return max(smallest, min(largest, round(wanted / MULTIPLE) * MULTIPLE))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """RGB, or RGBA where transparency is said in any of the ways that files know."""
    if picture.mode in SIXTEEN_BIT:  # Pillow would clip these, not scale them
        levels = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((levels * 255 + 32_767) // 65_535).astype(np.uint8))
    wanted = "RGBA" if picture.has_transparency_data else "RGB"
    return picture if picture.mode == wanted else picture.convert(wanted)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        if picture.getexif().get(ORIENTATION_TAG, 1) == 1:
            return picture
        return ImageOps.exif_transpose(picture)
    except BROKEN:
        return picture  # damaged EXIF says nothing of the pixels


def _over(picture: Image.Image, colour: str) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    ground = Image.new("RGB", picture.size, colour)
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def _check_shape(picture: tuple[int, int], mask: tuple[int, int]) -> None:
    ratio = (mask[0] * picture[1]) / (mask[1] * picture[0])
    if abs(ratio - 1) > SHAPE_TOLERANCE:
        reason = f"is {mask[0]}x{mask[1]} and the image {picture[0]}x{picture[1]}; both must have one shape"
        raise BadPictureError("mask", reason)


def _mask_of(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """What is transparent in a mask is not white."""
    grey = fit(_over(picture, "black").convert("L"), size, Image.Resampling.BILINEAR)
    mask = np.where(np.asarray(grey) >= THRESHOLD, 255, 0).astype(np.uint8)
    if not mask.any():
        raise BadPictureError("mask", "holds no white, so nothing would be drawn")
    return mask


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
