from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw, ImageFont

from compositor.compose.errors import ComposeError
from compositor.compose.fonts import BUNDLED, load_font
from compositor.compose.placement import View
from compositor.compose.text import Typesetter, text_tile
from compositor.design import OutputSize, TextLayer

if TYPE_CHECKING:
    from pathlib import Path

REGULAR = BUNDLED["regular"]
VIEW = View.of((400, 400), OutputSize(name="original", width=400, height=400))


def layer(**changes: object) -> TextLayer:
    box = {"x": 20, "y": 300, "width": 360, "height": 80}
    return TextLayer.model_validate({"text": "{title}", "box": box, "size": 40, "colour": "#ff0000", **changes})


def setter(text: str, **changes: object) -> Typesetter:
    return Typesetter(layer(**changes), text, REGULAR, VIEW, (360, 80))


def ink(tile: Image.Image) -> tuple[int, int, int, int]:
    box = tile.getchannel("A").getbbox()
    assert box is not None
    return box


def test_short_text_keeps_its_size() -> None:
    setting = setter("Hello").fitted()
    assert setting.lines == ("Hello",)
    assert setting.font.size == 40


def test_long_text_is_shrunk_until_it_fits() -> None:
    setting = setter("A bottle that keeps drinks cold for a whole day and longer").fitted()
    assert 12 <= setting.font.size < 40
    assert len(setting.lines) * setting.line_height <= 80
    assert all(setting.width(line) <= 360 for line in setting.lines)
    larger = setter("A bottle that keeps drinks cold for a whole day and longer", size=int(setting.font.size) + 1)
    assert larger.fitted().font.size == setting.font.size, "one pixel more would not fit"


def test_a_word_is_shrunk_rather_than_broken() -> None:
    setting = setter("Donaudampfschifffahrtsgesellschaft").fitted()
    assert setting.lines == ("Donaudampfschifffahrtsgesellschaft",)


def test_what_cannot_fit_ends_in_an_ellipsis() -> None:
    setting = setter("word " * 100, min_size=30, max_lines=2).fitted()
    assert len(setting.lines) == 2
    assert setting.lines[-1].endswith("…")
    assert setting.width(setting.lines[-1]) <= 360


@pytest.mark.parametrize(("align", "side"), [("left", 0), ("right", 1)])
def test_alignment(align: str, side: int) -> None:
    left, _, right, _ = ink(text_tile(layer(align=align), "Hi", REGULAR, VIEW).image)
    assert (left < 10, right > 350) == (side == 0, side == 1)


@pytest.mark.parametrize(("align", "above"), [("top", True), ("bottom", False)])
def test_upright_alignment(align: str, above: bool) -> None:
    _, top, _, bottom = ink(text_tile(layer(vertical_align=align, size=20), "Hi", REGULAR, VIEW).image)
    assert (bottom < 40) is above
    assert (top > 40) is not above


def test_arabic_is_joined_and_runs_from_the_right() -> None:
    """The shaped word is narrower than its letters one by one, and a Latin word after it lies to its left."""
    font = load_font(REGULAR, 40)
    word = "قارورة"
    assert font.getlength(word, direction="rtl") < sum(font.getlength(letter) for letter in word)
    tile = text_tile(layer(align="center", colour="#000000"), f"{word} WWW", REGULAR, VIEW).image
    mirrored = text_tile(layer(align="center", colour="#000000"), "WWW", REGULAR, VIEW).image
    left, _, right, _ = ink(tile)
    latin = ink(mirrored)[2] - ink(mirrored)[0]
    solid = tile.getchannel("A").crop((left, 0, left + latin, 80))
    expected = mirrored.getchannel("A").crop((ink(mirrored)[0], 0, ink(mirrored)[2], 80))
    difference = sum(abs(a - b) for a, b in zip(solid.tobytes(), expected.tobytes(), strict=True)) / len(
        expected.tobytes()
    )
    assert difference < 12
    assert right - left > latin * 1.5


def test_outline_and_box_are_drawn() -> None:
    outlined = layer(outline={"colour": "#0000ff", "width": 4}, background="#00ff0080", radius=20, padding=4)
    tile = text_tile(outlined, "Hi", REGULAR, VIEW).image
    colours = {pixel for _, pixel in tile.getcolors(100_000) or []}
    assert (0, 0, 255, 255) in colours
    assert (255, 0, 0, 255) in colours
    assert (0, 255, 0, 128) in colours
    assert tile.getpixel((0, 0))[3] < 40, "the corner is round"  # type: ignore[index]


@pytest.mark.parametrize("width", [12, 24, 40])  # thicker than the counters are wide
@pytest.mark.parametrize("text", ["o", "8e", "Out"])
def test_a_thick_outline_has_no_holes(text: str, width: int) -> None:
    tile = text_tile(layer(outline={"colour": "#0000ff", "width": width}), text, REGULAR, VIEW).image
    opaque = tile.getchannel("A").point(lambda value: 255 if value else 0)
    around = Image.new("L", (tile.width + 2, tile.height + 2), 0)
    around.paste(opaque, (1, 1))
    ImageDraw.floodfill(around, (0, 0), 128)
    assert around.getextrema()[0] == 128, "nothing is clear but what is outside"


def test_an_outline_of_half_transparent_colour_is_even() -> None:
    tile = text_tile(layer(outline={"colour": "#0000ff80", "width": 20}), "oo", REGULAR, VIEW).image
    blues = {pixel[3] for pixel in tile.get_flattened_data() if pixel[:3] == (0, 0, 255)}  # type: ignore[index]
    assert max(blues) == 128


def test_no_letter_is_cut_off() -> None:
    big = layer(size=60, box={"x": 20, "y": 200, "width": 360, "height": 120}, align="left", vertical_align="top")
    left, top, right, bottom = ink(text_tile(big, "ÄgÅj", REGULAR, VIEW).image)
    assert top > 0
    assert bottom < 120
    assert right < 360
    assert left >= 0


def test_text_scales_with_the_output() -> None:
    double = View.of((400, 400), OutputSize(name="double", width=800, height=800))
    tile = text_tile(layer(), "Hello", REGULAR, double)
    assert (tile.x, tile.y, tile.image.size) == (40, 600, (720, 160))
    wide = [box[2] - box[0] for box in (ink(tile.image), ink(text_tile(layer(), "Hello", REGULAR, VIEW).image))]
    assert wide[0] == pytest.approx(2 * wide[1], abs=4)


def test_line_breaks_of_the_text_stay() -> None:
    assert setter("Now\nonly").fitted().lines == ("Now", "only")
    assert setter("a\n\nb", size=20).fitted().lines == ("a", "", "b")
    tile = text_tile(layer(), "one\n\ntwo", REGULAR, VIEW)
    assert ink(tile.image)


def test_a_file_that_is_no_font(tmp_path: Path) -> None:
    path = tmp_path / "font.ttf"
    path.write_bytes(b"no font" * 100)
    with pytest.raises(ComposeError) as raised:
        text_tile(layer(), "Hi", path, VIEW)
    assert raised.value.code == "bad_font"


def test_the_font_is_laid_out_by_raqm() -> None:
    assert load_font(REGULAR, 20).layout_engine == ImageFont.Layout.RAQM
