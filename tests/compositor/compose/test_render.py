from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from compositor.compose.errors import ComposeError
from compositor.compose.job import ComposeJob
from compositor.compose.render import Renderer, render
from compositor.design import OutputSize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)
BOX = {"x": 50, "y": 50, "width": 100, "height": 100}
BADGE = "ast_" + "b" * 26
OTHER = "ast_" + "c" * 26


def pixels(job: ComposeJob) -> Image.Image:
    composed = render(job)
    image = Image.open(io.BytesIO(composed.data))
    assert image.size == (composed.width, composed.height)
    return image


def at(image: Image.Image, x: int, y: int) -> object:
    return image.convert("RGB").getpixel((x, y))


def test_contain(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": BOX}))
    assert [at(image, *point) for point in ((52, 77), (147, 77), (147, 122), (52, 122))] == [RED, GREEN, BLUE, WHITE]
    assert at(image, 100, 60) == at(image, 100, 140) == at(image, 10, 10) == GREY


def test_cover(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": BOX, "fit": "cover", "anchor": "left"}))
    assert at(image, 52, 52) == at(image, 140, 52) == RED
    assert at(image, 52, 147) == at(image, 140, 147) == WHITE
    assert at(image, 49, 100) == at(image, 150, 100) == GREY


def test_stretch(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": BOX, "fit": "stretch"}))
    assert [at(image, *point) for point in ((52, 52), (147, 52), (147, 147), (52, 147))] == [RED, GREEN, BLUE, WHITE]


def test_without_a_box_three_fifths_are_taken(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"fit": "stretch"}))
    assert (at(image, 41, 41), at(image, 158, 158), at(image, 38, 38)) == (RED, BLUE, GREY)


def test_a_box_outside_is_brought_inside(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": {**BOX, "x": 5000, "y": -5000}, "fit": "stretch"}))
    assert (at(image, 101, 1), at(image, 198, 98), at(image, 98, 50)) == (RED, BLUE, GREY)


def test_a_box_outside_is_brought_inside_under_a_frame_too(make_job: Callable[..., ComposeJob], hole: Path) -> None:
    box = {"x": -100, "y": 0, "width": 200, "height": 200}
    outside = make_job(frame_path=hole, placement={"box": box, "fit": "stretch"})
    inside = make_job(frame_path=hole, placement={"box": {**box, "x": 0}, "fit": "stretch"})
    assert render(outside) == render(inside)


def test_padding_and_background(make_job: Callable[..., ComposeJob]) -> None:
    placement = {"box": BOX, "padding": 10, "background": "#000000", "fit": "stretch"}
    image = pixels(make_job(placement=placement))
    assert (at(image, 55, 55), at(image, 62, 62), at(image, 145, 145)) == ((0, 0, 0), RED, (0, 0, 0))


def test_padding_never_eats_the_whole_box(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": BOX, "padding": 2000, "fit": "stretch"}))
    assert image.size == (200, 200)


def test_radius_rounds_the_corners(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": BOX, "fit": "stretch", "radius": 30}))
    assert (at(image, 51, 51), at(image, 90, 51), at(image, 60, 60)) == (GREY, RED, RED)
    assert at(image, 148, 148) == GREY
    huge = pixels(make_job(placement={"box": BOX, "fit": "stretch", "radius": 4096}))
    assert (at(huge, 60, 60), at(huge, 70, 70)) == (GREY, RED)


@pytest.mark.parametrize(("degrees", "corner"), [(90, WHITE), (180, BLUE), (270, GREEN), (-90, GREEN), (360, RED)])
def test_rotation_is_clockwise(
    make_job: Callable[..., ComposeJob], degrees: float, corner: tuple[int, int, int]
) -> None:
    image = pixels(make_job(placement={"box": BOX, "fit": "stretch", "rotation": degrees}))
    assert at(image, 54, 54) == corner


def test_rotation_by_any_angle_leaves_clean_edges(make_job: Callable[..., ComposeJob]) -> None:
    image = pixels(make_job(placement={"box": BOX, "fit": "stretch", "rotation": 45}))
    # the left top corner has turned to the top, the right top one to the right
    assert (at(image, 100, 40), at(image, 160, 100), at(image, 40, 100)) == (RED, GREEN, WHITE)
    assert at(image, 55, 55) == GREY
    between = [at(image, x, 64) for x in range(60, 80)]
    assert all(min(pixel) >= 0 and pixel[0] >= 126 for pixel in between), "no dark seam"  # type: ignore[index]


def test_shadow_lies_under_and_beside(make_job: Callable[..., ComposeJob]) -> None:
    shadow = {"x": 20, "y": 20, "blur": 0, "colour": "#000000ff"}
    image = pixels(make_job(placement={"box": BOX, "fit": "stretch", "shadow": shadow}))
    assert (at(image, 160, 160), at(image, 148, 148), at(image, 60, 160), at(image, 80, 160)) == (
        (0, 0, 0),
        BLUE,
        GREY,
        (0, 0, 0),
    )


def test_a_soft_shadow_fades(make_job: Callable[..., ComposeJob]) -> None:
    shadow = {"x": 0, "y": 0, "blur": 30, "colour": "#000000ff"}
    image = pixels(make_job(placement={"box": BOX, "fit": "stretch", "shadow": shadow}))
    greys = [at(image, 100, y)[0] for y in (151, 156, 165, 175)]  # type: ignore[index]
    assert greys == sorted(greys)
    assert greys[0] < 90
    assert at(image, 100, 199) == GREY


@pytest.fixture
def hole(tmp_path: Path) -> Path:
    """A frame with a hole in its middle and half a veil at its top."""
    image = Image.new("RGBA", (200, 200), (128, 128, 128, 255))
    image.paste((0, 0, 0, 0), (60, 60, 140, 140))
    image.paste((0, 0, 0, 128), (60, 60, 140, 80))
    path = tmp_path / "hole.png"
    image.save(path)
    return path


def test_a_frame_with_a_hole_lies_over_the_product(make_job: Callable[..., ComposeJob], hole: Path) -> None:
    image = pixels(make_job(frame_path=hole, placement={"box": BOX, "fit": "stretch"}))
    assert (at(image, 62, 90), at(image, 55, 90), at(image, 138, 138)) == (RED, GREY, BLUE)
    assert at(image, 70, 70) == (127, 0, 0), "the veil darkens the product"


def test_what_shows_through_where_no_product_is(make_job: Callable[..., ComposeJob], hole: Path) -> None:
    small = {"box": {"x": 90, "y": 100, "width": 20, "height": 20}}
    clear = pixels(make_job(frame_path=hole, placement=small))
    assert clear.mode == "RGBA"
    assert clear.getpixel((70, 120))[3] == 0  # type: ignore[index]
    white = pixels(make_job(frame_path=hole, placement=small, output={"kind": "jpeg", "quality": 100, "exact": True}))
    assert at(white, 70, 120) == WHITE


def test_the_layer_may_be_said(make_job: Callable[..., ComposeJob], hole: Path) -> None:
    image = pixels(make_job(frame_path=hole, layer="under", placement={"box": BOX, "fit": "stretch"}))
    assert at(image, 55, 90) == RED


def test_a_clear_product_shows_the_frame(make_job: Callable[..., ComposeJob], tmp_path: Path) -> None:
    product = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    product.paste((255, 0, 0, 128), (0, 0, 50, 100))
    product.save(tmp_path / "clear.png")
    image = pixels(make_job(source=tmp_path / "clear.png", placement={"box": BOX}))
    assert at(image, 140, 100) == GREY
    assert at(image, 60, 100) == pytest.approx((192, 64, 64), abs=1)


def test_sizes_of_other_shapes(make_job: Callable[..., ComposeJob]) -> None:
    sizes = [{"name": "square", "width": 100, "height": 100}, {"name": "story", "width": 100, "height": 200}]
    job = make_job(placement={"box": BOX, "fit": "stretch"}, sizes=sizes)
    square = pixels(ComposeJob(job.source, job.frame, False, job.design, job.design.sizes[0]))
    assert square.size == (100, 100)
    assert (at(square, 26, 26), at(square, 23, 23)) == (RED, GREY)
    story = pixels(ComposeJob(job.source, job.frame, False, job.design, job.design.sizes[1]))
    assert story.size == (100, 200)
    assert (at(story, 2, 52), at(story, 97, 147), at(story, 50, 40)) == (RED, BLUE, GREY)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("exact", [False, True])
def test_formats_carry_no_metadata(
    make_job: Callable[..., ComposeJob], tmp_path: Path, kind: str, exact: bool
) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x8825] = "secret", {1: "N", 2: (1.0, 2.0, 3.0)}
    source = tmp_path / "secret.jpg"
    Image.new("RGB", (800, 800), "red").save(source, exif=exif, comment=b"secret", icc_profile=b"secret" * 40)
    composed = render(make_job(source=source, output={"kind": kind, "exact": exact}))
    with Image.open(io.BytesIO(composed.data)) as image:
        assert image.format == kind.upper()
        assert dict(image.getexif()) == {}
        assert "icc_profile" not in image.info
    assert b"secret" not in composed.data


def test_badges_by_condition(make_job: Callable[..., ComposeJob], tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (250, 0, 250)).save(tmp_path / "sale.png")
    Image.new("RGB", (10, 10), (0, 250, 250)).save(tmp_path / "new.png")
    badges = [
        {"asset": BADGE, "when": [{"field": "sale_price", "operator": "<", "value": "{price}"}]},
        {"asset": OTHER},
    ]
    job = make_job(badges=[{"box": {"x": 0, "y": 0, "width": 40, "height": 40}, "badges": badges}])
    assets = {BADGE: tmp_path / "sale.png", OTHER: tmp_path / "new.png"}

    def corner(fields: dict[str, str]) -> object:
        return at(pixels(ComposeJob(job.source, job.frame, False, job.design, job.size, fields, assets)), 5, 5)

    assert corner({"price": "10 EUR", "sale_price": "8 EUR"}) == (250, 0, 250)
    assert corner({"price": "10 EUR"}) == (0, 250, 250)
    with pytest.raises(ComposeError) as raised:
        pixels(ComposeJob(job.source, job.frame, False, job.design, job.size, {}, {}))
    assert raised.value.code == "bad_asset"


def test_half_a_badge(make_job: Callable[..., ComposeJob], tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (0, 0, 0)).save(tmp_path / "badge.png")
    box = {"x": 0, "y": 0, "width": 40, "height": 40}
    job = make_job(badges=[{"box": box, "badges": [{"asset": BADGE}], "opacity": 0.5}])
    image = pixels(
        ComposeJob(job.source, job.frame, False, job.design, job.size, {}, {BADGE: tmp_path / "badge.png"})
    )
    assert at(image, 5, 5) == pytest.approx((64, 64, 64), abs=1)


def test_text_is_hidden_when_its_field_is_empty(make_job: Callable[..., ComposeJob]) -> None:
    box = {"x": 0, "y": 150, "width": 200, "height": 50}
    job = make_job(texts=[{"text": "Now {sale_price}", "box": box, "background": "#ff00ff"}])
    shown = ComposeJob(job.source, job.frame, False, job.design, job.size, {"g:sale_price": "5 EUR"})
    assert at(pixels(shown), 2, 152) == (255, 0, 255)
    assert at(pixels(job), 2, 152) == GREY


def test_text_that_no_font_can_draw_is_hidden_with_its_box(make_job: Callable[..., ComposeJob]) -> None:
    box = {"x": 0, "y": 150, "width": 200, "height": 50}
    job = make_job(texts=[{"text": "{title}", "box": box, "background": "#ff0000"}])
    shown = render(dataclasses.replace(job, fields={"title": "\U000f0000"}))
    assert shown == render(dataclasses.replace(job, fields={}))
    assert shown != render(dataclasses.replace(job, fields={"title": "\U000f0000!"}))


def test_a_replaced_frame_is_seen(make_job: Callable[..., ComposeJob], frame: Path) -> None:
    renderer = Renderer()
    job = make_job(placement={"box": BOX})
    first = renderer.render(job)
    assert renderer.render(job).data == first.data
    Image.new("RGB", (200, 200), (1, 2, 3)).save(frame)
    image = Image.open(io.BytesIO(renderer.render(job).data))
    assert at(image, 5, 5) == (1, 2, 3)


def test_what_is_kept_depends_on_the_design(make_job: Callable[..., ComposeJob]) -> None:
    """One renderer serves several frames' designs; none may see another's."""
    renderer = Renderer()
    designs = [{"placement": {"box": BOX}}, {"placement": {"box": {**BOX, "x": 0}}}, {"output": {"kind": "jpeg"}}]
    jobs = [make_job(**design) for design in designs]
    assert [renderer.render(job).data for job in (*jobs, *jobs)] == 2 * [render(job).data for job in jobs]


def test_a_bad_frame(make_job: Callable[..., ComposeJob], frame: Path) -> None:
    job = make_job()
    frame.write_bytes(b"nothing")
    with pytest.raises(ComposeError) as raised:
        render(job)
    assert raised.value.code == "bad_frame"
    frame.unlink()
    with pytest.raises(ComposeError) as raised:
        render(job)
    assert raised.value.code == "bad_frame"


def test_no_letter_of_the_size_is_trusted(make_job: Callable[..., ComposeJob]) -> None:
    job = make_job()
    tiny = OutputSize.model_construct(name="tiny", width=1, height=1)
    assert pixels(ComposeJob(job.source, job.frame, False, job.design, tiny)).size == (1, 1)
