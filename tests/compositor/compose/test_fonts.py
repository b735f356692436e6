from __future__ import annotations

import random
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from compositor.compose.errors import ComposeError
from compositor.compose.fonts import (
    BUNDLED,
    FALLBACK,
    FontChain,
    drawable,
    fallbacks,
    has,
    load_font,
    try_font,
)

REGULAR = BUNDLED["regular"]
SAMPLES = {
    "Chinese": "跑步鞋 白色",
    "Japanese": "ランニングシューズ 軽い",
    "Korean": "운동화 흰색",
    "Hindi": "हल्के जूते",
    "Thai": "รองเท้าวิ่ง",
    "Tamil": "காலணி",
    "Bengali": "জুতা",
    "Arabic": "حذاء جري",
    "Hebrew": "נעלי ריצה",
    "Greek": "Παπούτσια",
    "Cyrillic": "Кроссовки",
    "Georgian": "ფეხსაცმელი",
    "Amharic": "ጫማ",
}


def drawn(text: str, path: Path = REGULAR, direction: str | None = "ltr") -> np.ndarray:
    tile = Image.new("L", (700, 90), 0)
    FontChain(path, 40).draw(ImageDraw.Draw(tile), (10, 60), text, direction, fill=255)
    return np.asarray(tile)


@pytest.mark.parametrize("language", SAMPLES)
def test_every_letter_has_a_font(language: str) -> None:
    for font, run in FontChain(REGULAR, 30).runs(SAMPLES[language]):
        path = Path(str(font.path))
        assert all(has(path, letter) for letter in run if not letter.isspace()), (path, run)


@pytest.mark.parametrize("language", SAMPLES)
def test_every_letter_leaves_ink_and_none_is_a_box(language: str) -> None:
    box = drawn("\U000f0000")  # a letter of nobody's
    box = box[:, box.any(axis=0)]
    letters = [letter for letter in SAMPLES[language] if unicodedata.category(letter)[0] == "L"]
    for letter in letters:
        shape = drawn(letter)
        assert shape.any(), letter
        shape = shape[:, shape.any(axis=0)]
        assert shape.shape != box.shape or (shape != box).any(), letter


def test_one_font_draws_a_text_that_it_has_in_one_piece() -> None:
    for text in ("Running shoe, 20 % off", "Größe 42: weiß", "حذاء جري 42"):
        assert [run for _, run in FontChain(REGULAR, 30).runs(text)] == [text]


def test_marks_spaces_and_signs_stay_with_their_letters() -> None:
    runs = [(font.path, run) for font, run in FontChain(REGULAR, 30).runs("Nike जूते, 白色! ok")]
    assert [run for _, run in runs] == ["Nike ", "जूते, ", "白色", "! ok"]
    assert [str(path).rpartition("/")[2] for path, _ in runs] == [
        "DejaVuSans.ttf",
        "NotoSansDevanagari-Regular.ttf",
        "DroidSansFallbackFull.ttf",
        "DejaVuSans.ttf",
    ]


def test_length_is_what_is_drawn() -> None:
    chain = FontChain(REGULAR, 40)
    for text in ("Nike जूते", "白色 ok", "plain"):
        columns = np.flatnonzero(drawn(text).any(axis=0))
        assert abs((columns[-1] - columns[0]) - chain.length(text, "ltr")) < 12


def test_right_to_left_puts_the_first_run_at_the_right() -> None:
    chain = FontChain(REGULAR, 40)
    first = chain.length("حذاء ", "rtl")
    both = drawn("حذاء 白色", direction="rtl")
    columns = np.flatnonzero(both.any(axis=0))
    alone = drawn("白色", direction="rtl")
    width = np.flatnonzero(alone.any(axis=0))[-1] - np.flatnonzero(alone.any(axis=0))[0]
    assert np.array_equal(
        both[:, columns[0] : columns[0] + width], alone[:, np.flatnonzero(alone.any(axis=0))[0] :][:, :width]
    )
    assert columns[-1] - columns[0] > width + first / 2


def test_metrics_hold_every_letter() -> None:
    chain = FontChain(REGULAR, 40)
    plain, mixed = chain.metrics("Ag"), chain.metrics("Ag ஸ்ரீ 白")
    assert mixed[0] >= plain[0]
    assert mixed[1] >= plain[1]
    assert chain.metrics("") == load_font(REGULAR, 40).getmetrics()


def test_a_letter_that_nobody_has_is_drawn_by_the_first_font() -> None:
    ((font, run),) = FontChain(REGULAR, 30).runs("\U000f0000")
    assert (font.path, run) == (str(REGULAR), "\U000f0000")


def test_letters_that_nobody_has_are_left_out() -> None:
    assert drawable(REGULAR, "Shirt \U0001f44d\ufe0f ♥ \U000f0000!") == "Shirt  ♥ !"
    assert drawable(REGULAR, "\U0001f469\u200d\U0001f52c \U0001f44d\ufe0f").strip() == ""
    persian = "\u0645\u06cc\u200c\u062e"
    assert drawable(REGULAR, persian) == persian


def test_a_font_is_tried_letter_by_letter(tmp_path: Path) -> None:
    try_font(REGULAR)
    for path in fallbacks():
        try_font(path)
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(with_random_glyphs(REGULAR.read_bytes()))
    with pytest.raises(ComposeError) as raised:
        try_font(broken)
    assert raised.value.code == "bad_font"


def with_random_glyphs(font: bytes) -> bytes:
    """Sound tables but for the outlines, in which nothing makes sense."""
    data = bytearray(font)
    (count,) = struct.unpack_from(">H", data, 4)
    for place in range(count):
        tag, _, offset, length = struct.unpack_from(">4sIII", data, 12 + 16 * place)
        if tag == b"glyf":
            data[offset : offset + length] = random.Random(1).randbytes(length)
    return bytes(data)


def test_what_is_no_font_is_taken_to_have_all(tmp_path: Path) -> None:
    path = tmp_path / "x.ttf"
    path.write_bytes(b"no font")
    assert has(path, "白")


def test_the_fallbacks_are_there_with_their_licence() -> None:
    assert len(fallbacks()) > 10
    assert (FALLBACK / "LICENSE.txt").read_text().count("License") >= 2
