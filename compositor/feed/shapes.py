"""The quick way to an entry's fields: a pattern learned from the entries before it.

A feed's entries look alike: the same elements in the same order, some left out, some several times. One match against
a pattern of all of them finds an entry's end and takes its texts, several times faster than going from tag to tag.
The pattern is exact: what is no list of elements of the kinds that were met does not match, and takes the long way.
What matches is well-formed if its characters and references are (`judge`), which is why names that are not plainly
XML's are left to the long way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, cast

from compositor.feed.elements import elements
from compositor.feed.markup import unescape, without_sections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Wanted = Callable[[str], bool]

MAX_SHAPES = 16
MAX_FIELDS = 60
MAX_FIELD_CHARS = 10_000
"""Longer than Google's longest field, the description of 5,000, and than any address that is taken."""
_GAP = "\0"
"""Joins texts; no well-formed XML holds it, not even as a reference."""
_SPACE = r"[ \t\r\n]*+"
_TEXT = "[^<]*+"
_TEXT_OR_CDATA = r"(?:[^<]++|<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+\]\]>)*+"
_CDATA, _CDATA_END = "<![CDATA[", "]]>"
_PLAIN_NAME = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_.-]*:)?[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Child:
    """A kind of child, as far as it was met.

    Attributes:
        key: its field.
        cdata: its text may have CDATA sections in it.
        repeats: several may stand one after another, of which the first counts.
        empty: it may be self-closing.
        inside: names of the plain elements that it may hold instead of text.
        attributes: names of its attributes, in their order.

    """

    key: str
    cdata: bool = False
    repeats: bool = False
    empty: bool = False
    inside: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def merged(self, other: Child) -> Child:
        """A kind that has what both have."""
        return Child(
            self.key,
            self.cdata or other.cdata,
            self.repeats or other.repeats,
            self.empty or other.empty,
            tuple(sorted({*self.inside, *other.inside})),
            tuple(merged_order(self.attributes, other.attributes) or other.attributes),
        )

    def pattern(self, name: str, *, taken: bool) -> str:
        """Matches it, or nothing; its text is the one group if it is `taken`."""
        tag, text = re.escape(name), _TEXT_OR_CDATA if self.cdata else _TEXT
        attributes = "".join(rf'(?:[ \t\r\n]++{re.escape(one)}="[^"<]*+")?+' for one in self.attributes)
        leaves = "|".join(f"<{leaf}>{text}</{leaf}{_SPACE}>{_SPACE}" for leaf in map(re.escape, self.inside))
        body = f"{_SPACE}(?:{leaves})++|{text}" if leaves else text

        def element(opening: str) -> str:
            whole = f"<{tag}{attributes}{_SPACE}>{opening}{body})</{tag}{_SPACE}>"
            return f"(?:{whole}|<{tag}{attributes}{_SPACE}/>)" if self.empty else whole

        more = f"(?:{element('(?:')}{_SPACE})*+" if self.repeats else ""
        return f"(?:{element('(' if taken else '(?:')}{_SPACE}{more})?+"


class Shape:
    """Entries of one name, whose children are of these kinds, in this order.

    Args:
        entry: the entries' name.
        children: the kinds of children by name.
        wanted: the fields whose texts are taken; None for all.

    """

    def __init__(self, entry: str, children: dict[str, Child], wanted: Wanted | None = None) -> None:
        taken = {name: child for name, child in children.items() if wanted is None or wanted(child.key)}
        self._pattern = re.compile(
            f"{_SPACE}<{re.escape(entry)}>{_SPACE}"
            + "".join(child.pattern(name, taken=name in taken) for name, child in children.items())
            + f"</{re.escape(entry)}{_SPACE}>"
        )
        self._keys = [child.key for child in taken.values()]
        self._marked = [number for number, child in enumerate(taken.values()) if child.cdata or child.inside]
        self._repeated = [child.key for child in taken.values() if child.repeats]
        self._skipped = [child.key for child in taken.values() if child.repeats and child.empty]
        self._linked = any(child.key == "link" and child.attributes for child in taken.values())
        self._has_attributes = any(child.attributes for child in children.values())
        self._may_lie_elsewhere = bool(self._repeated) or self._has_attributes
        self.entry, self.children = entry, children

    def match(self, buffer: str, at: int) -> tuple[dict[str, str], int] | None:
        """The wanted fields of the entry that stands at `at`, and where it ends; None when it has not this shape."""
        found = self._pattern.match(buffer, at)
        if found is None:
            return None
        end = found.end()
        groups: Sequence[str | None] = found.groups()
        sections = {}
        if self._marked:
            groups = list(groups)
            for number in self._marked:
                text = groups[number]
                if text is not None and "<" in text:
                    sections[self._keys[number]] = _plain(text)
                    groups[number] = ""
        keys: Iterable[str] = self._keys
        texts = cast("Sequence[str]", groups)
        if None in groups:
            there: Sequence[object] = groups if "" not in groups else [text is not None for text in groups]
            keys = compress(keys, there)
            texts = tuple(compress(texts, there))
        joined = _GAP.join(texts)
        if "&" in joined:
            texts = unescape(joined).split(_GAP)
        fields = dict(zip(keys, map(str.strip, texts), strict=False))
        if sections:
            fields.update(sections)
        if self._may_lie_elsewhere and self._lies_elsewhere(fields):
            return None
        return (cut_fields(fields) if end - at > MAX_FIELD_CHARS else fields), end

    def _lies_elsewhere(self, fields: dict[str, str]) -> bool:
        """Whether a field's text may be where the pattern does not look: in an attribute, or in a later element."""
        return (
            any(fields.get(key) == "" for key in self._repeated)
            or any(key not in fields for key in self._skipped)  # the first of several may be self-closing
            or (self._has_attributes and "image_link" not in fields)
            or (self._linked and not fields.get("link"))
        )


def merged_order(some: Iterable[str], others: Iterable[str]) -> list[str] | None:
    """An order of all these names that suits both; None when there is none."""
    order, at = list(some), 0
    for name in others:
        if name not in order:
            order.insert(at, name)
        elif order.index(name) < at:
            return None
        at = order.index(name) + 1
    return order


class Shapes:
    """The shapes met in a feed so far; `latest` is the one to try.

    Args:
        wanted: of which fields the texts are taken; None for all.

    """

    def __init__(self, wanted: Wanted | None = None) -> None:
        self.latest: Shape | None = None
        self._wanted = wanted
        self._count = 0
        self._met: dict[str, Child] = {}

    def learn(self, entry: str, children: dict[str, Child]) -> None:
        """An entry called `entry` had children of these kinds, in this order."""
        if self._count >= MAX_SHAPES or not 0 < len(children) <= MAX_FIELDS:
            return
        inner = [name for child in children.values() for name in (*child.inside, *child.attributes)]
        if not all(map(_PLAIN_NAME.fullmatch, (entry, *children, *inner))):
            return
        self._met |= {name: self._met.get(name, child).merged(child) for name, child in children.items()}
        order = list(children)
        if self.latest is not None and self.latest.entry == entry:
            joint = merged_order(self.latest.children, children)
            order = joint if joint is not None and len(joint) <= MAX_FIELDS else order
        met = {name: self._met[name] for name in order}
        if self.latest is None or (self.latest.entry, list(self.latest.children.items())) != (
            entry,
            list(met.items()),
        ):
            self._count += 1
            self.latest = Shape(entry, met, self._wanted)


def cut_fields(fields: dict[str, str]) -> dict[str, str]:
    """Each at most `MAX_FIELD_CHARS` long."""
    return {name: text[:MAX_FIELD_CHARS] for name, text in fields.items()}


def _plain(text: str) -> str:
    """The text of one in which there are sections or elements."""
    text = text.strip()
    last = len(text) - len(_CDATA_END)
    if text.startswith(_CDATA) and (text.find("]") == last or text.find(_CDATA_END) == last):
        return text[len(_CDATA) : -len(_CDATA_END)].strip()
    if "<!" not in text:
        leaves = (unescape(part.partition(">")[2]).strip() for part in text.split("<")[1::2])
        return ":".join(filter(None, leaves))
    if text.count("<") > text.count("<!"):
        return elements(f"<x>{text}</x>")[0].text
    return unescape(without_sections(text)).strip()
