"""Any of Pillow's modes and any colour profile to 8-bit sRGB."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache

from PIL import Image, ImageCms, ImageColor

WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Sixteen bits of grey and more; Pillow's own conversion to 8 bits would clip them to white."""
PROFILE_MODES = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}
MAX_PROFILE = 8 * 2**20

Rgba = tuple[int, int, int, int]


def parse(colour: str) -> Rgba:
    """`#rrggbb` or `#rrggbbaa` as four values from 0 to 255."""
    values = ImageColor.getrgb(colour)
    return values if len(values) == 4 else (*values, 255)  # noqa: PLR2004 - with alpha


def resizable(image: Image.Image) -> Image.Image:
    """The same picture in a mode whose pixels may be averaged: grey, RGB, RGBA or CMYK.

    An ICC profile stays with it: it is applied by `to_rgb`, on fewer pixels once they are resampled.
    """
    if image.mode in WIDE_MODES:
        return image.point(lambda value: value * (1 / 256) + 0).convert("L")
    if image.mode in ("RGBA", "CMYK", "RGB", "L") and "transparency" not in image.info:
        return image
    return _kept(image, image.convert("RGBA" if image.has_transparency_data else "RGB"))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where the picture has an alpha channel, in sRGB."""
    image = resizable(image)
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE:
        image = _through(profile, image)
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _kept(before: Image.Image, after: Image.Image) -> Image.Image:
    if profile := before.info.get("icc_profile"):
        after.info["icc_profile"] = profile
    return after


def _through(profile: bytes, image: Image.Image) -> Image.Image:
    """The picture in sRGB; itself where the profile is broken, for another kind of picture, or sRGB already."""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    base = image.convert("RGB") if alpha else image
    try:
        transform = _transform(hashlib.sha256(profile).digest(), _Bytes(profile), base.mode)
        if transform is None:
            return image
        converted = ImageCms.applyTransform(base, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if converted is None:
        return image
    if alpha:
        converted.putalpha(alpha)
    return converted


class _Bytes(bytes):
    """Equal to any other, so that only the digest beside it is the key of the cache."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bytes)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=16)
def _transform(_digest: bytes, profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if opened.profile.xcolor_space != PROFILE_MODES.get(mode):
        return None
    description = opened.profile.profile_description or ""
    if mode == "RGB" and description.startswith("sRGB"):
        return None  # most files carry this one, and it changes nothing
    return ImageCms.buildTransform(opened, _srgb(), mode, "RGB")


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
