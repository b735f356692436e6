"""An entry's fields: its children's local names in lower case, each with its text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from compositor.feed.elements import Element, elements
from compositor.feed.entries import NEEDED
from compositor.feed.markup import Piece, has_sections, unescape, without_sections
from compositor.feed.shapes import MAX_FIELD_CHARS, Child, Shapes, cut_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compositor.feed.shapes import Wanted

GOOGLE = ("http://base.google.com/ns/", "https://base.google.com/ns/")
ATOM = "http://www.w3.org/2005/Atom"
MAX_NAMES = 5000
MAX_DEPTH = 64
_NAME = re.compile(r"[^\s/!?=\"'&]+")
_DECLARATION = re.compile(r"""\sxmlns(?::([^\s=]+))?\s*=\s*["']([^"']*)["']""")
_SECTION_CHILD = re.compile(r"<([^\s<>/!?]+)>[^<]*+<!\[CDATA\[")
_ATTRIBUTES = re.compile(r'(?:[ \t\r\n]+[^\s=/"\'<>]+="[^"<]*")*[ \t\r\n]*')
_ATTRIBUTE_NAME = re.compile(r'([^\s=/"\'<>]+)="[^"]*"')
_PICTURE_ELEMENTS = {"content", "thumbnail", "enclosure", "link"}


class Names(dict[str, str | None]):
    """From an element's name as written to its field; None where the quick way does not do.

    That is for tags with attributes, and for fields that come under several names (`title` and `g:title`), of which
    the one of Google's namespace wins, then the one without prefix, whichever stands first.

    Attributes:
        undeclared: prefixes met that the document's head does not declare; the reader looks into them and empties it.

    """

    def __init__(self, head: str, wanted: Wanted | None = None) -> None:
        super().__init__()
        self._wanted = wanted
        self._declared = {match[1] or "": match[2] for match in _DECLARATION.finditer(head)}
        self._declared.setdefault("xml", "")
        self._first: dict[str, str] = {}
        self._settled: set[str] = set()
        self.undeclared: set[str] = set()
        self.shapes = Shapes(self._wanted)

    def __missing__(self, name: str) -> str | None:
        """Look at a name met for the first time; what is no plain name is not remembered."""
        if not _NAME.fullmatch(name):
            return None
        prefix, _, local = name.rpartition(":")
        if prefix and prefix not in self._declared and prefix not in self._settled:
            self.undeclared.add(prefix)
        key: str | None = local.lower()
        if len(self) >= MAX_NAMES:
            return None
        first = self._first.setdefault(local.lower(), name)
        if first != name:
            self[first] = key = None
            self.shapes = Shapes(self._wanted)
        self[name] = key
        return key

    def learnable(self, name: str) -> str | None:
        """The field of a name met before, where the quick way does for it: several may stand for one nobody wants."""
        key, local = self[name], name.rpartition(":")[2].lower()
        if key is None and self._wanted is not None and not self._wanted(local):
            return local
        return key

    def declares(self, prefix: str) -> bool:
        """Whether the head declares a prefix."""
        return prefix in self._declared

    def settle(self, inner: str) -> bool:
        """Whether a prefix that is not declared in the head is not declared in this entry either."""
        missing = any(f"xmlns:{prefix}" not in inner for prefix in self.undeclared)
        self._settled |= self.undeclared
        self.undeclared.clear()
        return missing

    def rank(self, name: str) -> int:
        """How near the name is to what a product feed means: Google's 2, without prefix or Atom's 1, others 0."""
        prefix = name.rpartition(":")[0]
        space = self._declared.get(prefix, "")
        if prefix == "g" or space.startswith(GOOGLE):
            return 2
        return 1 if not prefix or space == ATOM else 0

    @property
    def google_prefix(self) -> str:
        """The prefix of Google's names, empty when the head declares none."""
        for prefix, space in self._declared.items():
            if prefix and space.startswith(GOOGLE):
                return prefix
        return ""


def read_fields(piece: Piece, names: Names, *, tolerant: bool) -> dict[str, str]:
    """`all_fields`, each cut at `MAX_FIELD_CHARS`."""
    fields = all_fields(piece, names, tolerant=tolerant)
    return cut_fields(fields) if len(piece.inner) > MAX_FIELD_CHARS else fields


def all_fields(piece: Piece, names: Names, *, tolerant: bool) -> dict[str, str]:
    """The fields of one entry. The first filled one of a name counts.

    Entries are nearly always a flat list of plain elements; those are split at `<`. All else takes the longer way.
    """
    inner = piece.inner
    if has_sections(inner):
        sections = _SECTION_CHILD.findall(inner)
        inner = without_sections(inner)
    else:
        sections = []
    pairs = None if tolerant else _flat(inner, names)
    if pairs is None:
        found = elements(inner)
        fields = _nested(found, names, deepest=MAX_DEPTH if tolerant else 1)
        if not tolerant:
            _learn_nested(piece, names, found, sections)
        return fields
    fields = {}
    for name, text in pairs:
        key = cast("str", names[name])
        if not fields.get(key):
            fields[key] = unescape(text.strip())
    _learn(piece, names, [(name, "", ()) for name, _ in pairs], sections)
    return fields


def _learn(
    piece: Piece, names: Names, met: Iterable[tuple[str, str, tuple[str, ...]]], sections: Iterable[str]
) -> None:
    """Teach the feed's shapes an entry's children, each with its attributes and the names of those in it."""
    children: dict[str, Child] = {}
    last = ""
    for name, attributes, inside in met:
        key = names.learnable(name)
        empty = attributes.endswith("/")
        found = _ATTRIBUTES.fullmatch(attributes.removesuffix("/"))
        if key is None or found is None or (empty and key in NEEDED) or (name in children and name != last):
            return
        called = tuple(_ATTRIBUTE_NAME.findall(attributes))
        if any(one.startswith("xmlns") for one in called) or len(set(called)) < len(called):
            return
        cdata = not {name, *inside}.isdisjoint(sections)
        child = Child(key, cdata, name in children, empty, inside, called)
        children[name] = children[name].merged(child) if name in children else child
        last = name
    if piece.closing:
        names.shapes.learn(piece.opening[1:-1], children)


def _learn_nested(piece: Piece, names: Names, found: list[Element], sections: Iterable[str]) -> None:
    met: list[tuple[str, str, tuple[str, ...]]] = []
    for element in found:
        if element.depth == 1:
            met.append((element.name, element.attributes, ()))
        elif element.depth > 2 or element.attributes:  # noqa: PLR2004 - a child's child
            return
        else:
            name, attributes, inside = met[-1]
            met[-1] = name, attributes, (*inside, element.name)
    _learn(piece, names, met, sections)


def _flat(inner: str, names: Names) -> list[tuple[str, str]] | None:
    """Names and texts of the children when all are plain, else None."""
    parts = inner.split("<")
    if not len(parts) % 2:
        return None
    split = [part.partition(">") for part in parts[1::2]]  # opening tags only, else one of them begins with a slash
    if any(names[name] is None for name, _, _ in split):
        return None
    return [(name, text) for name, _, text in split]


def _nested(found: list[Element], names: Names, deepest: int) -> dict[str, str]:
    """Fields of children; in a broken entry, where one is left open, of those that seem to lie deeper too."""
    best: dict[str, tuple[tuple[int, int], str]] = {}
    picture = ""
    for element in found:
        if element.depth > deepest:
            continue
        key = local_name(element)
        if element.depth == 1:
            _ = names[element.name]  # so that an undeclared prefix is noticed
            picture = picture or picture_beside(element)
        text = element.text or (element.attribute("href") if key == "link" else "")
        rank = (-element.depth, names.rank(element.name))
        held = best.get(key)
        if held is None or (text and (not held[1] or rank > held[0])):
            best[key] = (rank, text)
    fields = {key: text for key, (rank, text) in best.items() if rank[0] == -1 or text}
    if picture:
        fields.setdefault("image_link", picture)
    return fields


def local_name(element: Element) -> str:
    """The field that an element stands for."""
    return element.name.rpartition(":")[2].lower()


def picture_beside(element: Element) -> str:
    """The address in an element that plainly names the entry's picture: media:content, an enclosure of an image."""
    if local_name(element) not in _PICTURE_ELEMENTS:
        return ""
    kind, url = element.attribute("type"), element.attribute("url")
    if local_name(element) == "link":
        url = element.attribute("href") if element.attribute("rel") == "enclosure" else ""
    is_media = element.name.startswith("media:")
    if kind.startswith("image/") or (is_media and (element.attribute("medium") == "image" or not kind)):
        return url
    return url if is_media and element.name.endswith(":thumbnail") else ""
