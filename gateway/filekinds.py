"""The kinds of picture files that a backend may send, told by their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.jpeg import BEGINNING, NotJpegError, jpeg_size
from gateway.png import SIGNATURE, NotPngError, png_size
from gateway.webp import NotWebpError, webp_size

if TYPE_CHECKING:
    from collections.abc import Callable


class NotPictureError(ValueError):
    """The bytes are no whole picture of a kind that we keep; the message says why."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind. `name` is its name on the wire, `suffix` without the dot; `size` reads width and height in pixels."""

    name: str
    suffix: str
    media_type: str
    beginning: bytes
    size: Callable[[bytes], tuple[int, int]]


KINDS = (
    FileKind("png", "png", "image/png", SIGNATURE, png_size),
    FileKind("jpeg", "jpg", "image/jpeg", BEGINNING, jpeg_size),
    FileKind("webp", "webp", "image/webp", b"RIFF", webp_size),
)
BY_SUFFIX = {kind.suffix: kind for kind in KINDS}


def measure(data: bytes) -> tuple[FileKind, int, int]:
    """A picture's kind, width and height; nothing is decoded.

    Raises:
        NotPictureError: it is none, or not whole.

    """
    kind = next((kind for kind in KINDS if data.startswith(kind.beginning)), None)
    if kind is None:
        raise NotPictureError("neither PNG, JPEG nor WebP")
    try:
        return kind, *kind.size(data)
    except (NotPngError, NotJpegError, NotWebpError) as problem:
        raise NotPictureError(str(problem)) from None


def kind_of_key(key: str) -> FileKind:
    """The kind of a stored picture, by its key."""
    return BY_SUFFIX[key.rpartition(".")[2]]
