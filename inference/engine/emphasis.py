r"""A1111's prompt syntax: which words weigh how much, and where a new chunk begins.

`(word)` weighs 1.1, `(word:1.3)` 1.3, `[word]` 1/1.1; brackets nest and multiply, a backslash makes the next bracket
or backslash a character, BREAK begins a new chunk. An opened bracket that is never closed holds to the end, a
closing one that was never opened is a character. What else that syntax knows (prompt editing, alternation, AND,
`<lora:...>`) is not done here: it is read so that the text makes sense, and every such place is noted.

Each pass is linear in the text's length, and none recurses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

ROUND: Final = 1.1
SQUARE: Final = 1 / 1.1
MIN_WEIGHT: Final = 0.0
MAX_WEIGHT: Final = 5.0
"""Weights are held within these: below 0 a word is not reversed but garbled, above 5 it drowns all others."""
HUGE: Final = 1e9
"""No product of written weights leaves this, so that none becomes infinite on the way to its bound."""
MAX_NOTES: Final = 8
MAX_QUOTED: Final = 60

_NUMBER = r"[+-]?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})"
_TOKEN = re.compile(rf"\\(?P<escaped>[\\()\[\]]?)|(?P<open>[(\[])|:\s{{0,8}}(?P<weight>{_NUMBER})\s{{0,8}}\)|[)\]]")
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_IS_NUMBER = re.compile(rf"\s*{_NUMBER}\s*")
# what A1111 calls extra networks
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_STEPS = re.compile(r"\\.?|[()\[\]:|]", re.DOTALL)
_LORA_TAGS = ("lora", "lyco")
_TEXTS_OF_AN_EDIT = 2


@dataclass(frozen=True, slots=True)
class Span:
    """Text of one weight, from `MIN_WEIGHT` to `MAX_WEIGHT`."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text as it is to be encoded.

    `sections` begin at a BREAK each and hold at least one span; neighbours in a section differ in weight. `notes` say
    in plain words what was not read as it is in A1111.
    """

    sections: tuple[tuple[Span, ...], ...]
    notes: tuple[str, ...] = ()


def plain(text: str) -> Parsed:
    """The text as it stands: every character is a character."""
    return Parsed(((Span(text),),))


def parse(text: str) -> Parsed:
    """Read A1111's syntax. Never raises: whatever is no syntax is text."""
    notes = _Notes()
    text = _without_tags(text, notes)
    text = _without_and(text, notes)
    text = _without_edits(text, notes)
    sections = [_merged(section, notes) for section in _weighted(text)]
    return Parsed(tuple(sections), notes.all())


@dataclass(slots=True)
class _Notes:
    """Notes in the order of their places, each once, as many as a reader wants."""

    found: dict[str, None] = field(default_factory=dict)

    def add(self, note: str) -> None:
        self.found[note] = None

    def all(self) -> tuple[str, ...]:
        more = len(self.found) - MAX_NOTES
        notes = tuple(self.found)[:MAX_NOTES]
        return (*notes, f"and {more} more places like these") if more > 0 else notes


def _quoted(text: str) -> str:
    shown = " ".join(text[: 4 * MAX_QUOTED].split())
    return f"`{shown}`" if len(shown) <= MAX_QUOTED else f"`{shown[:MAX_QUOTED]}…`"


def _without_tags(text: str, notes: _Notes) -> str:
    def strip(found: re.Match[str]) -> str:
        if found[1].lower() in _LORA_TAGS:
            notes.add(f"{_quoted(found[0])} is not read from the prompt; send it as `loras`")
        else:
            notes.add(f"{_quoted(found[0])} is not supported and was left out")
        return ""

    return _TAG.sub(strip, text)


def _without_and(text: str, notes: _Notes) -> str:
    """`one AND two :0.5` as `one, two`."""
    parts = _AND.split(text)
    if len(parts) == 1:
        return text
    notes.add("`AND` does not combine prompts here; what it joins was read as one prompt")
    return ", ".join(kept for part in parts if (kept := _without_share(part).strip()))


def _without_share(part: str) -> str:
    head, colon, tail = part.rpartition(":")
    return head if colon and _IS_NUMBER.fullmatch(tail) else part


@dataclass(slots=True)
class _Group:
    """A bracket that is open: where it stands in the output, and its own separators there."""

    bracket: str
    start: int
    separators: list[int] = field(default_factory=list)


def _without_edits(text: str, notes: _Notes) -> str:
    """`[from:to:when]` and `[a|b]` become the first of their texts that is not empty."""
    out: list[str] = []
    groups: list[_Group] = []
    opened = {"(": 0, "[": 0}
    end = 0
    for found in _STEPS.finditer(text):
        out.append(text[end : found.start()])
        end = found.end()
        out.append(piece := found[0])
        if piece in opened:
            groups.append(_Group(piece, len(out) - 1))
            opened[piece] += 1
        elif piece in (":", "|") and groups:
            groups[-1].separators.append(len(out) - 1)
        elif piece in (")", "]") and opened[bracket := "(" if piece == ")" else "["]:
            # brackets that are open inside this one can no longer be the ends of an edit
            while (group := groups.pop()).bracket != bracket:
                opened[group.bracket] -= 1
            opened[bracket] -= 1
            if bracket == "[":
                _read_edit(out, group, notes)
    out.append(text[end:])
    return "".join(out)


def _read_edit(out: list[str], group: _Group, notes: _Notes) -> None:
    """If what closes now, `out` from the group's start on, is an edit or alternates, keep one of its texts."""
    if not group.separators:
        return
    # a number has no separators and no brackets in it, so that it is one piece
    ends_in_number = len(out) - 2 - group.separators[-1] == 1 and _IS_NUMBER.fullmatch(out[-2]) is not None
    bars = [place for place in group.separators if out[place] == "|"]
    if not bars and not (ends_in_number and len(group.separators) <= _TEXTS_OF_AN_EDIT):
        return
    texts = _split(out, group.start, bars or group.separators)
    written = _quoted("".join(out[group.start :]))
    if not bars:
        when = texts.pop()
    kept = next((text for text in texts if text.strip()), "")
    read = _quoted(kept) if kept else "nothing of it"
    if bars:
        notes.add(f"{written} does not alternate here; {read} was read throughout")
    else:
        hint = f"; a weight is written `({kept.strip()}:{when.strip()})`" if _may_mean_a_weight(texts) else ""
        notes.add(f"{written} is not edited from step to step here; {read} was read throughout{hint}")
    out[group.start :] = [kept]


def _may_mean_a_weight(texts: list[str]) -> bool:
    return len(texts) == 1 and 0 < len(texts[0].strip()) <= MAX_QUOTED


def _split(out: list[str], start: int, places: list[int]) -> list[str]:
    """The texts between a group's bracket, its separators, and its closing bracket, which ends `out`."""
    bounds = [start, *places, len(out) - 1]
    return ["".join(out[a + 1 : b]) for a, b in pairwise(bounds)]


@dataclass(slots=True)
class _Bracket:
    """An opening bracket, a matched closing one (`closes`), or neither: text."""

    text: str
    opens: str = ""
    closes: str = ""
    factor: float = 1.0


def _weighted(text: str) -> list[list[Span]]:
    """Spans with their products of weights, a list for each section."""
    products = {"(": [1.0], "[": [1.0]}
    sections: list[list[Span]] = [[]]
    for piece in _matched(text):
        if piece.opens:
            held = products[piece.opens]
            held.append(_within(held[-1] * piece.factor, -HUGE, HUGE))
        elif piece.closes:
            products[piece.closes].pop()
        else:
            weight = products["("][-1] * products["["][-1]
            first, *others = _BREAK.split(piece.text)
            sections[-1].append(Span(first, weight))
            sections += [[Span(other, weight)] for other in others]
    return sections


def _matched(text: str) -> list[_Bracket]:
    """The text cut at its brackets; round and square ones are matched each among their own, as in A1111."""
    pieces: list[_Bracket] = []
    waiting: dict[str, list[_Bracket]] = {"(": [], "[": []}
    end = 0
    for found in _TOKEN.finditer(text):
        pieces.append(_Bracket(text[end : found.start()]))
        end = found.end()
        if (escaped := found["escaped"]) is not None:
            pieces.append(_Bracket(escaped))
        elif bracket := found["open"]:
            default = ROUND if bracket == "(" else SQUARE
            pieces.append(opening := _Bracket("", opens=bracket, factor=default))
            waiting[bracket].append(opening)
        elif waiting[bracket := "[" if found[0] == "]" else "("]:
            opening = waiting[bracket].pop()
            if found["weight"] is not None:
                opening.factor = float(found["weight"])
            pieces.append(_Bracket("", closes=bracket))
        else:
            pieces.append(_Bracket(found[0]))
    pieces.append(_Bracket(text[end:]))
    return pieces


def _merged(spans: list[Span], notes: _Notes) -> tuple[Span, ...]:
    """One section's spans without empty ones, neighbours of one weight joined, weights within their bounds."""
    runs: list[tuple[list[str], float]] = []
    for span in spans:
        if not span.text:
            continue
        weight = _within(span.weight, MIN_WEIGHT, MAX_WEIGHT)
        if weight != span.weight and span.text.strip():
            notes.add(f"the weight {span.weight:.4g} of {_quoted(span.text)} was bounded to {weight:g}")
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(span.text)
        else:
            runs.append(([span.text], weight))
    return tuple(Span("".join(texts), weight) for texts, weight in runs) or (Span(""),)


def _within(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
