"""A font with others behind it for the letters that it lacks, so that no text comes out as empty boxes."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFont, features

from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.wrap import clusters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.ImageDraw import ImageDraw

FOLDER = Path(__file__).resolve().parents[1] / "fonts"
BUNDLED = {"regular": FOLDER / "DejaVuSans.ttf", "bold": FOLDER / "DejaVuSans-Bold.ttf"}
FALLBACK = FOLDER / "fallback"
TRIED_LETTERS, TRIED_SIZE = 200, 24
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True, slots=True)
class FontChain:
    """A font at a size in pixels; letters that it lacks come from the bundled font that has them."""

    path: Path
    size: int

    def runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The text cut where its font changes, in the order in which it is read."""
        if text.isascii() and self.path in BUNDLED.values():
            return [(load_font(self.path, self.size), text)]
        return [(load_font(path, self.size), run) for path, run in _cut(self.path, text)]

    def metrics(self, text: str) -> tuple[int, int]:
        """Ascent and descent in pixels that every letter of the text fits into."""
        found = [font.getmetrics() for font, _ in self.runs(text)] or [load_font(self.path, self.size).getmetrics()]
        return max(ascent for ascent, _ in found), max(descent for _, descent in found)

    def length(self, text: str, direction: str | None) -> float:
        """How wide a text on one line comes out, in pixels."""
        return sum(font.getlength(run, direction=direction) for font, run in self.runs(text))

    def draw(self, onto: ImageDraw, at: tuple[float, int], text: str, direction: str | None, **how: Any) -> None:
        """Draw one line from `at`, the left end of its baseline; `how` goes to Pillow."""
        left, baseline = at
        runs = self.runs(text)
        for font, run in reversed(runs) if direction == "rtl" else runs:
            onto.text((round(left), baseline), run, font=font, anchor="ls", direction=direction, **how)
            left += font.getlength(run, direction=direction)


def drawable(path: Path, text: str) -> str:
    """The text without letters for which neither this font nor a bundled one has a shape, such as some emoji.

    Marks and joiners go with the letter that they belong to.
    """
    if text.isascii() and path in BUNDLED.values():
        return text
    fonts = (path, *fallbacks())

    def shown(letter: str) -> bool:
        return letter.isspace() or letter in _JOINERS or any(has(font, letter) for font in fonts)

    return "".join("".join(filter(shown, cluster)) for cluster in clusters(text) if shown(cluster[0]))


@lru_cache(maxsize=1024)  # fitting measures the same words at many sizes
def _cut(first: Path, text: str) -> tuple[tuple[Path, str], ...]:
    found: list[tuple[Path, str]] = []
    for letter in text:
        path = _font_of(letter, first, found[-1][0] if found else first)
        if found and found[-1][0] == path:
            found[-1] = (path, found[-1][1] + letter)
        else:
            found.append((path, letter))
    return tuple(found)


def _font_of(letter: str, first: Path, before: Path) -> Path:
    """The font of a letter after one that `before` drew. Marks and spaces stay with their neighbours."""
    neutral = letter.isspace() or letter in _JOINERS or unicodedata.category(letter)[0] in "MP"
    order: tuple[Path, ...] = (before, first) if neutral else (first,)
    return next((path for path in (*order, *fallbacks()) if has(path, letter)), before if neutral else first)


@lru_cache(maxsize=1)
def fallbacks() -> tuple[Path, ...]:
    """The bundled fonts in the order in which they are asked: of one script, of Chinese and Japanese, of Korean."""
    makers = ("Noto", "Droid", "Nanum")  # Nanum's last: it has empty shapes for many Chinese letters
    return (BUNDLED["regular"], *(path for maker in makers for path in sorted(FALLBACK.glob(f"{maker}*.ttf"))))


def has(path: Path, letter: str) -> bool:
    """Whether a font has a shape for a letter. One whose table cannot be read is taken to have all."""
    known = _letters(path)
    return known is None or ord(letter) in known


@lru_cache(maxsize=64)
def _letters(path: Path) -> frozenset[int] | None:
    # imported here: most texts are plain ASCII and need none of it
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped] # noqa: PLC0415

    try:
        with path.open("rb") as file, TTFont(file, lazy=True, fontNumber=0) as font:
            table: Iterable[int] | None = font.getBestCmap()
    except Exception:  # noqa: BLE001 - an uploaded file may be anything; what draws it will say what is wrong
        return None
    return None if table is None else frozenset(table)


def try_font(path: Path) -> None:
    """Draw some of a font's letters, which its tables alone do not vouch for.

    Raises:
        ComposeError: `bad_font`: they cannot be drawn.

    """
    letters = sorted(letter for letter in map(chr, _letters(path) or ()) if letter.isprintable())
    text = "".join(letters[:: max(1, len(letters) // TRIED_LETTERS)])
    with font_faults():
        load_font(path, TRIED_SIZE).getmask(text or "Aa1")  # what cannot be listed may still be drawn


class font_faults:  # noqa: N801 - reads as a function: `with font_faults():`
    """Whatever FreeType says of a damaged font becomes `bad_font`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, ComposeError):
            raise bad_font() from error


def bad_font() -> ComposeError:
    """What is said of a font that cannot be used."""
    return ComposeError(ComposeCode.BAD_FONT, "A text layer's font could not be read.")


@lru_cache(maxsize=256)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels, with Raqm where Pillow has it.

    Raises:
        ComposeError: `bad_font`: the file is no font.

    """
    engine = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    with font_faults():
        return ImageFont.truetype(str(path), size, layout_engine=engine)
