"""The elements in one entry, with the places where they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from compositor.feed.markup import unescape

_TOKEN = re.compile(
    r"<!--.*?-->|<!\[CDATA\[(?P<data>.*?)\]\]>|<\?.*?\?>"
    r"""|<(?P<slash>/?)(?P<name>[^\s<>/!?"'=&]+)(?P<rest>(?:[^"'<>]++|"[^"]*+"|'[^']*+')*+)>""",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""([^\s=/"'<>]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")


@dataclass(slots=True)
class Element:
    """An element of an entry. Offsets are into the entry's inner text; `depth` 1 is a child of the entry."""

    name: str
    attributes: str
    depth: int
    start: int
    inner: int
    inner_end: int = -1
    end: int = -1
    parts: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    has_text: bool = False

    def add_text(self, text: str) -> None:
        """Character data directly in it."""
        self.parts.append(text)
        self.own.append(text)
        self.has_text = self.has_text or bool(text.strip())

    @property
    def text(self) -> str:
        """Its text; that of an element which only holds others is theirs, as Google's tables join it: `US:5 EUR`."""
        if self.children and not self.has_text:
            return ":".join(self.children)
        return "".join(self.parts).strip()

    @property
    def own_text(self) -> str:
        """The text directly in it, without that of elements in it."""
        return "".join(self.own).strip()

    def attribute(self, name: str) -> str:
        """An attribute's value, empty when it is not there."""
        for found, double, single in _ATTRIBUTE.findall(self.attributes):
            if found == name:
                return unescape(double or single).strip()
        return ""


def elements(inner: str) -> list[Element]:
    """All elements of an entry in the order in which they begin.

    Closing tags that fit nothing are passed over and elements that are never closed end with the entry, so that an
    entry which is not well-formed gives what can be read of it.
    """
    found: list[Element] = []
    stack: list[Element] = []
    last = 0
    for token in _TOKEN.finditer(inner):
        if stack and token.start() > last:
            stack[-1].add_text(unescape(inner[last : token.start()]))
        last = token.end()
        if token["data"] is not None and stack:
            stack[-1].add_text(token["data"])
        elif token["slash"]:
            _close(stack, token)
        elif token["name"]:
            empty = token["rest"].endswith("/")
            element = Element(token["name"], token["rest"], len(stack) + 1, token.start(), token.end())
            found.append(element)
            stack.append(element)
            if empty:
                _pop(stack, token.end(), token.end())
    while stack:
        _pop(stack, len(inner), len(inner))
    return found


def _close(stack: list[Element], token: re.Match[str]) -> None:
    if not any(element.name == token["name"] for element in stack):
        return
    while stack[-1].name != token["name"]:
        _pop(stack, token.start(), token.start())
    _pop(stack, token.start(), token.end())


def _pop(stack: list[Element], inner_end: int, end: int) -> None:
    element = stack.pop()
    element.inner_end, element.end = inner_end, end
    if stack and (text := element.text):
        stack[-1].parts.append(text)
        stack[-1].children.append(text)
