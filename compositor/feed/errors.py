"""Why a whole feed could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from compositor.coded import CodedError

GIBIBYTE = 1024**3


class FeedCode(StrEnum):
    """Stable names of what can be wrong with a feed as a whole; they are kept with the run and shown to users."""

    DOCTYPE = "feed_doctype"
    TRUNCATED = "feed_truncated"
    NOT_XML = "feed_not_xml"
    NOT_A_FEED = "feed_not_a_feed"
    TOO_LARGE = "feed_too_large"
    ENTRY_TOO_LARGE = "feed_entry_too_large"
    TOO_MANY_ITEMS = "feed_too_many_items"
    EMPTY = "feed_empty"
    BAD_GZIP = "feed_bad_gzip"
    BAD_TABLE = "feed_bad_table"
    ENCODING = "feed_encoding"


class FeedError(CodedError):
    """The feed cannot be used; `code` is one of `FeedCode`, `message` is public and in plain words."""


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """How much of a feed is read: bytes after decompression, and entries."""

    max_bytes: int = 2 * GIBIBYTE
    max_items: int = 1_000_000
