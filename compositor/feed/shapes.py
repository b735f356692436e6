"""The quick way to an entry's fields: a pattern learned from the entries before it.

A feed's entries look alike: the same elements in the same order, some left out. One match against a pattern of all of
them finds an entry's end and takes its texts, several times faster than going from tag to tag. The pattern is exact:
what is not such a flat list of plain elements does not match, and takes the long way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from compositor.feed.markup import unescape, without_sections

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHAPES = 16
MAX_FIELDS = 60
MAX_FIELD_CHARS = 10_000
"""Longer than Google's longest field, the description of 5,000, and than any address that is taken."""
_GAP = "\0"
"""Joins texts; no well-formed XML holds it, not even as a reference."""
_TEXT = r"([^<]*+)"
_TEXT_OR_CDATA = r"((?:[^<]++|<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+\]\]>)*+)"
_CDATA, _CDATA_END = "<![CDATA[", "]]>"


class Shape:
    """Entries of one name, whose children have these names, each at most once and in this order."""

    def __init__(self, entry: str, names: tuple[str, ...], keys: list[str], *, sections: bool) -> None:
        text = _TEXT_OR_CDATA if sections else _TEXT
        tags = [rf"(?:<{tag}>{text}</{tag}\s*+>\s*+)?+" for tag in map(re.escape, names)]
        self._pattern = re.compile(rf"\s*+<{re.escape(entry)}>\s*+{''.join(tags)}</{re.escape(entry)}\s*+>")
        self._keys = keys
        self._sections = sections
        self.entry, self.names = entry, names

    def match(self, buffer: str, at: int) -> tuple[dict[str, str], int] | None:
        """The fields of the entry that stands at `at`, and where it ends; None when it has not this shape."""
        found = self._pattern.match(buffer, at)
        if found is None:
            return None
        end = found.end()
        keys: Iterable[str] = self._keys
        groups: tuple[str | None, ...] = found.groups()
        texts = cast("Iterable[str]", groups)
        if None in groups:
            keys = [key for key, text in zip(keys, groups, strict=True) if text is not None]
            texts = [text for text in groups if text is not None]
        if self._sections:
            texts = map(_plain, texts)
        elif buffer.find("&", at, end) >= 0:
            texts = unescape(_GAP.join(texts)).split(_GAP)
        fields = dict(zip(keys, map(str.strip, texts), strict=False))
        return (cut_fields(fields) if end - at > MAX_FIELD_CHARS else fields), end

    def merged(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        """An order of these names and its own that suits both; None when there is none."""
        order, at = list(self.names), 0
        for name in names:
            if name not in order:
                order.insert(at, name)
            elif order.index(name) < at:
                return None
            at = order.index(name) + 1
        return tuple(order) if len(order) <= MAX_FIELDS else None


class Shapes:
    """The shapes met in a feed so far; `latest` is the one to try."""

    def __init__(self) -> None:
        self.latest: Shape | None = None
        self._count = 0
        self._keys: dict[str, str] = {}
        self._sections = False

    def learn(self, entry: str, keys: dict[str, str], *, sections: bool) -> None:
        """An entry called `entry` had children of these names, each once, which stand for these fields."""
        if self._count >= MAX_SHAPES or not 0 < len(keys) <= MAX_FIELDS:
            return
        names = tuple(keys)
        if self.latest is not None and self.latest.entry == entry:
            names = self.latest.merged(names) or names
        self._count += 1
        self._keys.update(keys)
        self._sections = self._sections or sections
        self.latest = Shape(entry, names, [self._keys[name] for name in names], sections=self._sections)


def cut_fields(fields: dict[str, str]) -> dict[str, str]:
    """Each at most `MAX_FIELD_CHARS` long."""
    return {name: text[:MAX_FIELD_CHARS] for name, text in fields.items()}


def _plain(text: str) -> str:
    text = text.strip()
    if text.startswith(_CDATA) and text.find(_CDATA_END) == len(text) - len(_CDATA_END):
        return text[len(_CDATA) : -len(_CDATA_END)]
    return unescape(without_sections(text) if "<" in text else text)
