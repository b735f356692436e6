"""Breaking a text into lines that fit a width. It measures through a function and knows no fonts."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ELLIPSIS = "…"
_RTL = ("R", "AL")
_IDEOGRAPHS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "IDEOGRAPHIC")
_CLOSING = set("、。,.!?;:)]}」』】》〉!?),:;・ー…")
"""Marks that may not begin a line."""


def direction(text: str) -> str:
    """`rtl` or `ltr`, by the first letter that has a direction (rule P2 of the Unicode bidirectional algorithm)."""
    for letter in text:
        kind = unicodedata.bidirectional(letter)
        if kind in _RTL:
            return "rtl"
        if kind == "L":
            return "ltr"
    return "ltr"


def pieces(text: str) -> list[tuple[str, bool]]:
    """What a line may be broken between, each with whether a space stands before it."""
    found: list[tuple[str, bool]] = []
    for word in text.split():
        spaced = bool(found)
        current = ""
        for letter in word:
            if current and _may_break(current[-1], letter):
                found.append((current, spaced))
                current, spaced = "", False
            current += letter
        found.append((current, spaced))
    return found


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Lines of at most `width`, but for single letters that are wider; words that are too long are broken.

    Line breaks of the text stay, empty lines between them too.
    """
    found = [_wrapped(paragraph, width, measure) or [""] for paragraph in text.strip().splitlines()]
    return [line for lines in found for line in lines]


def _wrapped(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    lines: list[str] = []
    current, used = "", 0.0
    space = measure(" ")
    for piece, spaced in pieces(text):
        wide = measure(piece)
        gap = space if spaced and current else 0.0
        if current and used + gap + wide > width:
            lines.append(current)
            current, used, gap = "", 0.0, 0.0
        if wide > width and not current:
            *full, piece = broken(piece, width, measure)  # noqa: PLW2901 - its last part goes on the line
            lines += full
            wide = measure(piece)
        current += (" " if gap else "") + piece
        used += gap + wide
    return [*lines, current] if current else lines


def broken(word: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """A word too long for a line, in parts; marks stay with their letters."""
    parts, current = [], ""
    for cluster in clusters(word):
        if current and measure(current + cluster) > width:
            parts.append(current)
            current = ""
        current += cluster
    return [*parts, current]


def shortened(line: str, width: float, measure: Callable[[str], float]) -> str:
    """The line with an ellipsis at its end, as much of it as fits."""
    kept = clusters(line)
    while kept and measure("".join(kept).rstrip() + ELLIPSIS) > width:
        kept.pop()
    return "".join(kept).rstrip(" ,.;:-") + ELLIPSIS


def clusters(text: str) -> list[str]:
    """Letters with the marks and joiners that belong to them."""
    found: list[str] = []
    for letter in text:
        joined = found and (unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf") or found[-1].endswith("\u200d"))
        if joined:
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _may_break(before: str, letter: str) -> bool:
    if letter in _CLOSING or unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf"):
        return False
    if before == "-" and letter.isalpha():
        return True
    return _is_ideograph(before) or _is_ideograph(letter)


def _is_ideograph(letter: str) -> bool:
    return letter > "\u2e80" and unicodedata.name(letter, "").startswith(_IDEOGRAPHS)
