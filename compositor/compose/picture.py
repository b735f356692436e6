"""Opening a picture that somebody else made: few formats, a cap on pixels before any is decoded, upright, sRGB."""

from __future__ import annotations

import io
import struct
import warnings
from typing import TYPE_CHECKING

from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from compositor.compose import colour, fastjpeg
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import PictureInfo

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.placement import Size, Window

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
ORIENTATION_TAG = 0x0112
HEAD_BYTES = 32
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of each EXIF orientation upright; those from 5 on swap width and height."""
_SWAPS = 5
_OTHER_KINDS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"8BPS", "Photoshop"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"%PDF", "PDF"),
)
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    ZeroDivisionError,
)
"""What Pillow's readers raise on damaged files."""


class Picture:
    """One opened file, not decoded yet. `width` and `height` are those of the upright picture."""

    def __init__(self, data: bytes, image: Image.Image, kind: str) -> None:
        self._data = data
        self._image = image
        self._raw: Size = image.size
        self.kind = kind
        self._orientation = _orientation(image)
        swapped = self._orientation >= _SWAPS
        self.width, self.height = (image.height, image.width) if swapped else image.size

    def info(self) -> PictureInfo:
        """What it is; decodes it, since an alpha channel may hold nothing but opaque pixels.

        Raises:
            ComposeError: it is broken.

        """
        with _broken_files():
            image = colour.to_rgb(self._image)
        # the last of 256 counts is that of opaque pixels
        transparent = image.mode == "RGBA" and any(image.getchannel("A").histogram()[:255])
        return PictureInfo(self.width, self.height, transparent, self.kind.lower())

    def resampled(self, size: Size, window: Window, *, exact: bool) -> Image.Image:
        """`window` of the upright picture at `size` pixels, as RGB or RGBA in sRGB.

        Unless `exact`, a JPEG is decoded at the fraction of its size that still leaves enough pixels, and the rest is
        done with a short filter: several times as fast, about 43 dB from the exact result.

        Raises:
            ComposeError: it is broken.

        """
        with _broken_files():
            if self.kind == "JPEG" and self._image.mode == "RGB" and fastjpeg.available():
                image = self._through_turbojpeg(size, window, exact=exact)
                if image is not None:
                    return colour.to_rgb(image)
            if not exact:
                self._draft(size, window)
            self._image.load()
            return colour.to_rgb(self._shaped(self._image, size, window, exact=exact))

    def _through_turbojpeg(self, size: Size, window: Window, *, exact: bool) -> Image.Image | None:
        """None where Pillow has to have a look at the file."""
        least = self._raw if exact else self._least(size, window)
        try:
            pixels = fastjpeg.decode(self._data, least)
        except fastjpeg.UndecodableError:
            return None
        image = None
        if not exact and self._orientation not in _UPRIGHT:
            height, width, _ = pixels.shape
            image = fastjpeg.shrunk(pixels, self._inside(window, (width, height)), size)
        if image is None:
            image = self._shaped(fastjpeg.as_image(pixels), size, window, exact=exact)
        if profile := self._image.info.get("icc_profile"):
            image.info["icc_profile"] = profile
        return image

    def _shaped(self, image: Image.Image, size: Size, window: Window, *, exact: bool) -> Image.Image:
        """Upright, and resampled from whatever fraction it was decoded at."""
        image = colour.resizable(image)
        if self._orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[self._orientation])
        seen = self._inside(window, image.size)
        if image.size == size and seen == (0, 0, *image.size):
            return image
        profile = image.info.get("icc_profile")
        image = image.resize(size, _filter(seen, size, exact=exact), box=seen)
        if profile:
            image.info["icc_profile"] = profile
        return image

    def _least(self, size: Size, window: Window) -> Size:
        """How many pixels the whole file must have, as it lies, for `window` to have at least `size`."""
        seen_wide, seen_high = max(window[2] - window[0], 1e-6), max(window[3] - window[1], 1e-6)
        wide = min(self.width, max(1, int(self.width * size[0] / seen_wide)))
        high = min(self.height, max(1, int(self.height * size[1] / seen_high)))
        return (high, wide) if self._orientation >= _SWAPS else (wide, high)

    def _draft(self, size: Size, window: Window) -> None:
        if isinstance(self._image, JpegImagePlugin.JpegImageFile):
            self._image.draft(None, self._least(size, window))

    def _inside(self, window: Window, size: Size) -> Window:
        """`window` in a decoded picture of `size` pixels."""
        across, down = size[0] / self.width, size[1] / self.height
        left, top = max(0.0, window[0] * across), max(0.0, window[1] * down)
        right, bottom = min(size[0], window[2] * across), min(size[1], window[3] * down)
        return left, top, max(right, left + 1e-3), max(bottom, top + 1e-3)


def open_picture(path: Path) -> Picture:
    """Open a picture file.

    Raises:
        ComposeError: `not_an_image`, `unsupported_format`, `too_many_pixels` or `broken_image`.

    """
    try:
        data = path.read_bytes()  # read once and whole, so that no file stays open whatever a decoder does
    except OSError as error:
        raise ComposeError(ComposeCode.BROKEN_IMAGE, "The picture's file could not be read.") from error
    head = data[:HEAD_BYTES]
    _refuse_other_kinds(head)
    _refuse_large_webp(head)
    with _broken_files(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of more than 89 million pixels; ours is the lower bound
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ComposeError(ComposeCode.NOT_AN_IMAGE, "The file is not a picture.") from error
        except Image.DecompressionBombError as error:
            raise _too_many_pixels() from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()
    return Picture(data, image, "JPEG" if image.format == "MPO" else str(image.format))


class _broken_files:  # noqa: N801 - reads as a function: `with _broken_files():`
    """Whatever a reader raises on a damaged file becomes `broken_image`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, _BROKEN) and not isinstance(error, ComposeError):
            raise ComposeError(ComposeCode.BROKEN_IMAGE, "The picture is damaged or cut off.") from error


def _refuse_other_kinds(head: bytes) -> None:
    if not head:
        raise ComposeError(ComposeCode.NOT_AN_IMAGE, "The file is empty.")
    for magic, name in _OTHER_KINDS:
        if head.startswith(magic):
            raise ComposeError(
                ComposeCode.UNSUPPORTED_FORMAT, f"{name} files are not supported; use JPEG, PNG, WebP, GIF or BMP."
            )


def _refuse_large_webp(head: bytes) -> None:
    """Pillow's WebP reader makes room for the whole picture when it opens one, so its size is read here first."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:  # noqa: PLR2004 - up to the size
        return
    chunk = head[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(head[24:27], "little")
        height = 1 + int.from_bytes(head[27:30], "little")
    elif chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", head[26:30]))
    if width * height > MAX_PIXELS:
        raise _too_many_pixels()


def _too_many_pixels() -> ComposeError:
    return ComposeError(ComposeCode.TOO_MANY_PIXELS, f"The picture has more than {MAX_PIXELS // 10**6} megapixels.")


def _orientation(image: Image.Image) -> int:
    with _broken_files():
        try:
            value = image.getexif().get(ORIENTATION_TAG, 1)
        except (SyntaxError, struct.error, ValueError, TypeError, KeyError, IndexError):
            return 1  # damaged EXIF says nothing of the pixels
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _filter(seen: Window, size: Size, *, exact: bool) -> Image.Resampling:
    if exact:
        return Image.Resampling.LANCZOS
    if size[0] > seen[2] - seen[0] or size[1] > seen[3] - seen[1]:
        return Image.Resampling.BICUBIC
    # HAMMING costs as little as BILINEAR and keeps nearly the sharpness of BICUBIC when it shrinks
    return Image.Resampling.HAMMING
