"""An entry's picture links replaced or added to; all else stays as it was written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from compositor.feed.elements import Element, elements
from compositor.feed.fields import Names, local_name
from compositor.feed.markup import Piece, escape, has_sections

if TYPE_CHECKING:
    from collections.abc import Sequence

Mode = Literal["replace", "additional"]
PICTURE, MORE_PICTURES = "image_link", "additional_image_link"
_PLAIN_PICTURE = re.compile(rf"<(?:[^\s<>/!?:]+:)?{PICTURE}>([^<]*+)</")
_INDENT = re.compile(r"\n[ \t]*\Z")
_NAMESPACES = re.compile(r"""\sxmlns(?::[^\s=]+)?\s*=\s*(?:"[^"]*"|'[^']*')""")


def split_links(links: Sequence[str], mode: Mode) -> tuple[str | None, list[str]]:
    """The link for image_link, if it is to be replaced, and those for additional_image_link."""
    return (links[0], list(links[1:])) if mode == "replace" else (None, list(links))


def edited(piece: Piece, links: Sequence[str], mode: Mode, names: Names, *, tolerant: bool = False) -> Piece:
    """`piece` with `links` in it.

    In mode `replace` the first becomes image_link and the others additional ones; in mode `additional` all become
    additional ones, before those that are there already. A `tolerant` look finds the links of a broken entry too,
    where an element that is left open seems to hold all that follow.
    """
    main, more = split_links(links, mode)
    inner = piece.inner
    if main is not None and not more and not tolerant and (quick := _swapped(inner, main)) is not None:
        return piece._replace(inner=quick)
    found = elements(inner)
    children = [element for element in found if element.depth == 1]
    pictures = [element for element in children if local_name(element) == PICTURE]
    if tolerant and not pictures:
        pictures = [element for element in found if local_name(element) == PICTURE]
    added = _new_elements(main if not pictures else None, more, pictures or children, names)
    if pictures:
        inner = _insert(inner, pictures[0].end, _indent(inner, pictures[0].start), added)
        if main is not None:
            for element in reversed(pictures):
                inner = inner[: element.start] + _filled(element, main) + inner[element.end :]
    else:
        end = len(inner.rstrip())
        indent = _indent(inner, children[-1].start) if children else ""
        inner = _insert(inner, end, indent, added)
    if piece.closing or not piece.opening.endswith("/>"):
        return piece._replace(inner=inner)
    opening = piece.opening[:-2].rstrip()
    return Piece(piece.before, f"{opening}>", inner, f"</{opening[1:].split(maxsplit=1)[0]}>")


def _swapped(inner: str, link: str) -> str | None:
    """`inner` with another image_link, where all children are plain and one is that; None where they are not."""
    picture = _PLAIN_PICTURE.search(inner)
    if picture is None or has_sections(inner):
        return None
    if inner.count(PICTURE) - inner.count(MORE_PICTURES) != 2:  # noqa: PLR2004 - an element's two tags
        return None
    parts = inner.split("<")
    if any(part.startswith("/") for part in parts[1::2]) or not all(part.startswith("/") for part in parts[2::2]):
        return None
    return inner[: picture.start(1)] + escape(link) + inner[picture.end(1) :]


def _new_elements(main: str | None, more: list[str], beside: list[Element], names: Names) -> list[str]:
    """New elements, named and declared like the one beside which they stand."""
    model = next((element for element in beside if names.rank(element.name) == 2), None)  # noqa: PLR2004 - Google's
    if model is None and beside and local_name(beside[0]) == PICTURE:
        model = beside[0]
    prefix = model.name.rpartition(":")[0] if model else names.google_prefix
    before = f"{prefix}:" if prefix else ""
    space = "".join(_NAMESPACES.findall(model.attributes)) if model else ""
    wanted = [(PICTURE, main)] if main is not None else []
    wanted += [(MORE_PICTURES, link) for link in more]
    return [f"<{before}{name}{space}>{escape(link)}</{before}{name}>" for name, link in wanted]


def _filled(element: Element, link: str) -> str:
    attributes = element.attributes.rstrip("/").rstrip()
    return f"<{element.name}{attributes}>{escape(link)}</{element.name}>"


def _indent(inner: str, at: int) -> str:
    found = _INDENT.search(inner, 0, at)
    return found[0] if found else ""


def _insert(inner: str, at: int, indent: str, added: list[str]) -> str:
    return inner[:at] + "".join(indent + element for element in added) + inner[at:]
