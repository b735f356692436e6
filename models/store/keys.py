"""Keys of objects: relative paths of plain ASCII, checked before anything touches a disk or a bucket."""

from __future__ import annotations

import re

from models.store.errors import InvalidKeyError

KEY_MAX_CHARS = 512
SEGMENT_MAX_CHARS = 200
"""Room below the 255 bytes of a file name on every common file system."""

_SEGMENT = rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{SEGMENT_MAX_CHARS - 1}}}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


def check_key(key: str) -> str:
    """Return `key` when it is one: segments of letters, digits, `._-`, none empty or with a first dot.

    So `..`, absolute paths, NUL, backslashes and every percent trick are refused by what is allowed.

    Raises:
        InvalidKeyError: it is not.

    """
    if len(key) > KEY_MAX_CHARS or not _KEY.fullmatch(key):
        raise InvalidKeyError
    return key


def check_prefix(prefix: str) -> str:
    """A folder to list: empty for everything, else a key; a final slash makes no difference.

    Raises:
        InvalidKeyError: it is neither.

    """
    bare = prefix.removesuffix("/")
    return check_key(bare) if bare else ""


def content_key(sha256_hex: str, suffix: str) -> str:
    """The key of content by its hash, `objects/ab/cd/<hash>.png`, spread over folders.

    Raises:
        ValueError: not a lower-case SHA-256 or not a suffix like `.png`.

    """
    if not _SHA256.fullmatch(sha256_hex):
        raise ValueError("sha256_hex must be 64 lower-case hexadecimal digits")
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError("suffix must be a dot and up to eight letters or digits")
    return f"objects/{sha256_hex[:2]}/{sha256_hex[2:4]}/{sha256_hex}{suffix}"
