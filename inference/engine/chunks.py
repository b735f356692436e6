"""Tokens into chunks of the length that a text encoder takes, cut where a reader would cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK_BACK: Final = 20
"""How far before a chunk's end a better place is looked for, in tokens (A1111's `comma_padding_backtrack`)."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text; `span` numbers the stretch of one weight that it belongs to."""

    id: int
    weight: float = 1.0
    span: int = 0
    is_comma: bool = False
    ends_word: bool = True


def pack(sections: Sequence[Sequence[Token]], room: int, most: int) -> tuple[tuple[tuple[Token, ...], ...], int]:
    """Cut each section into chunks of at most `room` tokens; empty sections make none, no tokens at all one empty.

    Returns:
        At least one and at most `most` chunks, and how many tokens did not fit into them.

    """
    chunks: list[tuple[Token, ...]] = []
    for section in sections:
        start = 0
        while start < len(section):
            end = _cut(section, start, start + room)
            chunks.append(tuple(section[start:end]))
            start = end
    return tuple(chunks[:most]) or ((),), sum(len(chunk) for chunk in chunks[most:])


def _cut(tokens: Sequence[Token], start: int, end: int) -> int:
    """Where the chunk that begins at `start` ends, at the latest at `end`.

    As A1111: after the last comma of the chunk's last 20 tokens. Where there is none: before a weighted stretch that
    began there, else after a whole word, else at the end.
    """
    if end >= len(tokens):
        return len(tokens)
    if tokens[end].is_comma:
        return end
    places = range(end, max(start, end - LOOK_BACK), -1)
    after_comma = next((place for place in places if tokens[place - 1].is_comma), None)
    if after_comma is not None:
        return after_comma
    if tokens[end].weight != 1 and tokens[end - 1].span == tokens[end].span:
        before_span = next((place for place in places if tokens[place - 1].span != tokens[end].span), None)
        if before_span is not None:
            return before_span
    return next((place for place in places if tokens[place - 1].ends_word), end)
