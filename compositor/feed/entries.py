"""One product of a feed, and what keeps it from being framed."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_ID_CHARS = 256
MAX_URL_CHARS = 8192
_URL = re.compile(r"https?://[^\s/?#\\@]+(?:[/?#][^\x00-\x1f\x7f]*)?", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[^\s/?#\\@]+[/?#]", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
OTHER_PICTURE_FIELDS = ("image_url", "imagelink", "image")
"""Names under which feeds carry image_link, when they have no field of that name."""
NEEDED = frozenset({"id", "image_link", *OTHER_PICTURE_FIELDS})
"""The fields by which an entry is judged."""


class FeedEntry(NamedTuple):
    """An entry of a feed.

    Attributes:
        position: its ordinal in the feed, from 0.
        product_id: its id, or None.
        image_url: its picture's address as the feed gives it, or None.
        fields: all its fields by local name in lower case, or those asked for at least; of one that comes several
            times, the first.
        code: None, or why it cannot be framed: missing_id, bad_id, missing_image, relative_url, bad_url.
        reason: `code` in plain words.

    """

    position: int
    product_id: str | None
    image_url: str | None
    fields: dict[str, str]
    code: str | None
    reason: str | None


class EntryMaker:
    """Makes a feed's entries. The pictures of a feed mostly share an origin, so one that was good is remembered."""

    def __init__(self) -> None:
        self._origin = "\0"

    def make(self, position: int, fields: dict[str, str]) -> FeedEntry:
        """The entry at `position` with these fields, judged."""
        product_id, image_url = fields.get("id", ""), fields.get("image_link", "")
        if (
            product_id.isprintable()
            and 0 < len(product_id) <= MAX_ID_CHARS
            and image_url.isprintable()
            and len(image_url) <= MAX_URL_CHARS
            and (image_url.startswith(self._origin) or self._is_good(image_url))
        ):
            return FeedEntry(position, product_id, image_url, fields, None, None)
        return _careful(position, fields)

    def _is_good(self, image_url: str) -> bool:
        origin = _ORIGIN.match(image_url)
        if origin is None:
            return False
        self._origin = origin[0]
        return True


def _careful(position: int, fields: dict[str, str]) -> FeedEntry:
    product_id = fields.get("id") or None
    image_url = fields.get("image_link") or None
    if image_url is None and "image_link" not in fields:
        image_url = next((fields[name] for name in OTHER_PICTURE_FIELDS if fields.get(name)), None)
    code, reason = _fault(product_id, image_url)
    return FeedEntry(
        position,
        product_id and _CONTROL.sub(" ", product_id[:MAX_ID_CHARS]),
        image_url and image_url[:MAX_URL_CHARS],
        fields,
        code,
        reason,
    )


def _fault(product_id: str | None, image_url: str | None) -> tuple[str, str] | tuple[None, None]:
    if product_id is None:
        return "missing_id", "The entry has no id."
    if len(product_id) > MAX_ID_CHARS:
        return "bad_id", f"The id is longer than {MAX_ID_CHARS} characters."
    if _CONTROL.search(product_id):
        return "bad_id", "The id has control characters in it."
    if image_url is None:
        return "missing_image", "The entry has no image_link."
    return _address_fault(image_url)


def _address_fault(image_url: str) -> tuple[str, str] | tuple[None, None]:
    if len(image_url) <= MAX_URL_CHARS and _URL.fullmatch(image_url):
        return None, None
    if len(image_url) > MAX_URL_CHARS:
        return "bad_url", f"The image_link is longer than {MAX_URL_CHARS} characters."
    scheme = _SCHEME.match(image_url)
    if scheme is None:
        return "relative_url", "The image_link is no full address: it does not begin with http:// or https://."
    if scheme[0].lower() not in ("http:", "https:"):
        return "bad_url", f"The image_link begins with {scheme[0][:32]} and only http: and https: are fetched."
    return "bad_url", "The image_link is not a valid address."
