"""What may stand in a log: no picture, no secret, nothing long. Prompts are kept."""

from __future__ import annotations

import math
import re
from typing import Any

SECRET_NAME = re.compile(
    r"auth|token|secret|passw|credential|cookie|signature|api_?key|access_?(key|id)|^key$|webhook", re.IGNORECASE
)
SECRET_TEXT = re.compile(
    r"igen_[a-z2-7]{12}_[0-9A-Za-z]{43}"  # our keys
    r"|\b(?:rpa|sk|hf|ghp|xox[a-z])[_-][0-9A-Za-z_-]{16,}"  # RunPod's and other well-known ones
    r"|(?i:bearer)\s+[^\s\"',]+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user and password of an address
)
CAPABILITY = re.compile(r"((?:/media/(?:generated|outputs)|/feeds)/[0-9a-z]{6}|\bticket=[0-9a-z]{0,6})[0-9a-z]+")
DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+[;,][^\s\"']*", re.IGNORECASE)
BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{120,}={0,2}")
UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
"""PostgreSQL keeps neither NUL nor half of a surrogate pair in a text."""
LONGEST_TEXT = 2000
LONGEST_LIST = 20
MOST_NAMES = 50
DEEPEST = 5


def redact_text(text: str, limit: int = LONGEST_TEXT) -> str:
    """A text without secrets, capabilities and encoded bytes, cut to `limit` characters."""
    text = DATA_URI.sub(lambda found: f"<data uri, {len(found[0])} characters>", text[: 4 * limit])
    text = SECRET_TEXT.sub("<secret>", text)
    text = CAPABILITY.sub(r"\1<...>", text)
    text = BASE64_RUN.sub(lambda found: f"<{len(found[0])} characters of base64>", text)
    text = UNSTORABLE.sub("\ufffd", text)
    return text if len(text) <= limit else f"{text[:limit]}<{len(text) - limit} more characters>"


def redact(value: Any, depth: int = 0) -> Any:
    """A JSON value that may be logged."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, (dict, list)) and depth >= DEEPEST:
        return f"<{len(value)} items>"
    if isinstance(value, dict):
        kept = {redact_text(str(name), 100): _named(str(name), item, depth) for name, item in _first(value)}
        return kept if len(value) <= MOST_NAMES else {**kept, "...": f"<{len(value) - MOST_NAMES} more names>"}
    if isinstance(value, list):
        items = [redact(item, depth + 1) for item in value[:LONGEST_LIST]]
        return items if len(value) <= LONGEST_LIST else [*items, f"<{len(value) - LONGEST_LIST} more>"]
    # JSON has no word for NaN and the infinities
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _first(value: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return list(value.items())[:MOST_NAMES]


def _named(name: str, item: Any, depth: int) -> Any:
    return "<secret>" if SECRET_NAME.search(name) and item not in (None, "") else redact(item, depth + 1)
