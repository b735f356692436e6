from __future__ import annotations

import io
import struct
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageCms

from compositor.compose import fastjpeg
from compositor.compose.errors import ComposeError
from compositor.compose.picture import open_picture

if TYPE_CHECKING:
    from pathlib import Path

CORNERS = {"left top": (2, 2), "right top": (97, 2), "right bottom": (97, 47), "left bottom": (2, 47)}
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
TURNS = {
    # how a camera stored the upright picture that carries this orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(params=["turbojpeg", "pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to decode a JPEG."""
    if request.param == "pillow":
        monkeypatch.setattr(fastjpeg, "available", lambda: False)
    elif not fastjpeg.available():
        pytest.skip("OpenCV or simplejpeg is not installed")
    return str(request.param)


def code_of(path: Path, data: bytes | None = None) -> str:
    """The error's code on opening and decoding."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ComposeError) as raised:
        open_picture(path).resampled((10, 10), (0, 0, 10, 10), exact=False)
    return raised.value.code


def whole(path: Path, size: tuple[int, int] = (100, 50), *, exact: bool = False) -> Image.Image:
    picture = open_picture(path)
    return picture.resampled(size, (0, 0, picture.width, picture.height), exact=exact)


def assert_quarters(image: Image.Image, tolerance: int = 3) -> None:
    for place, wanted in zip(CORNERS.values(), (RED, GREEN, BLUE, WHITE), strict=True):
        pixel = image.convert("RGB").getpixel(place)
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True)), (place, pixel)


def jpeg_of(image: Image.Image, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=95, **options)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_that_are_taken(tmp_path: Path, quarters: Image.Image, kind: str) -> None:
    path = tmp_path / "picture"
    quarters.save(path, kind)
    info = open_picture(path).info()
    assert (info.width, info.height, info.transparent, info.format) == (400, 200, False, kind.lower())
    assert_quarters(whole(path), tolerance=12)


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PDF"])
def test_other_formats_under_a_false_name(tmp_path: Path, quarters: Image.Image, kind: str) -> None:
    path = tmp_path / "picture.png"
    quarters.save(path, kind)
    assert code_of(path) == "unsupported_format"


@pytest.mark.parametrize("data", [b"8BPS\0\1" + bytes(30), b"%!PS-Adobe-3.0 EPSF\n", b"\xc5\xd0\xd3\xc6" + bytes(30)])
def test_photoshop_and_postscript(tmp_path: Path, data: bytes) -> None:
    assert code_of(tmp_path / "picture.png", data) == "unsupported_format"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<html>gone</html>",
        bytes(99),
    ],
)
def test_what_is_no_picture(tmp_path: Path, data: bytes) -> None:
    assert code_of(tmp_path / "picture.jpg", data) == "not_an_image"


def test_a_missing_file(tmp_path: Path) -> None:
    assert code_of(tmp_path / "none.jpg") == "broken_image"


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("side", [7100, 13_300, 60_000])
def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path: Path, side: int) -> None:
    data = png_header(side, side) + struct.pack(">I", 4) + b"IDAT" + bytes(8)
    assert code_of(tmp_path / "bomb.png", data) == "too_many_pixels"


@pytest.mark.parametrize("chunk", ["VP8X", "VP8L", "VP8 "])
def test_a_large_webp_is_refused_before_it_is_opened(
    tmp_path: Path, chunk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 16_000
    body = {
        "VP8X": bytes(4) + (side - 1).to_bytes(3, "little") * 2,
        "VP8L": b"\x2f" + ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + bytes(8),
        "VP8 ": bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", side, side),
    }[chunk]
    data = (
        b"RIFF" + struct.pack("<I", 100) + b"WEBP" + chunk.encode() + struct.pack("<I", len(body)) + body + bytes(60)
    )
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert code_of(tmp_path / "bomb.webp", data) == "too_many_pixels"


def test_fifty_megapixels_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 5_000)).save(path)
    assert open_picture(path).width == 10_000


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_never_half_grey(
    tmp_path: Path, share: float, decoder: str, quarters: Image.Image
) -> None:
    whole_file = jpeg_of(quarters.resize((1600, 1200)))
    assert code_of(tmp_path / "cut.jpg", whole_file[: int(len(whole_file) * share)]) == "broken_image", decoder


def test_a_truncated_jpeg_with_an_end_put_to_it(tmp_path: Path, quarters: Image.Image) -> None:
    """Some servers close the file properly after cutting it; only the strict decoder tells."""
    if not fastjpeg.available():
        pytest.skip("OpenCV or simplejpeg is not installed")
    whole_file = jpeg_of(quarters.resize((1600, 1200)))
    assert code_of(tmp_path / "cut.jpg", whole_file[: len(whole_file) // 2] + b"\xff\xd9") == "broken_image"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_truncated_files(tmp_path: Path, quarters: Image.Image, kind: str) -> None:
    target = io.BytesIO()
    noise = Image.effect_noise((300, 300), 90).convert("RGB")
    noise.save(target, kind)
    assert code_of(tmp_path / "cut", target.getvalue()[: len(target.getvalue()) // 2]) == "broken_image"


def test_harmless_bytes_in_a_jpeg_do_no_harm(tmp_path: Path, quarters: Image.Image) -> None:
    """Garbage before the end marker is a warning of libjpeg's, and no reason to lose a product."""
    data = jpeg_of(quarters)
    path = tmp_path / "picture.jpg"
    path.write_bytes(data[:-2] + b"\x11\x22\x33" + data[-2:])
    assert_quarters(whole(path), tolerance=12)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_of_an_animation_the_first_picture_is_taken_at_once(tmp_path: Path, quarters: Image.Image, kind: str) -> None:
    others = [Image.new("RGB", (400, 200), (number % 256, number // 256, 0)) for number in range(300)]
    path = tmp_path / "animation"
    quarters.save(path, kind, save_all=True, append_images=others)
    data = path.read_bytes()
    started = time.process_time()
    assert_quarters(whole(path), tolerance=12)
    assert time.process_time() - started < 0.5, len(data)


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("exact", [False, True])
def test_every_orientation_comes_out_upright(
    tmp_path: Path, quarters: Image.Image, orientation: int, exact: bool, decoder: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = quarters.resize((1600, 800))
    if orientation in TURNS:
        turned = turned.transpose(TURNS[orientation])
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg_of(turned, exif=exif))
    picture = open_picture(path)
    assert (picture.width, picture.height) == (1600, 800), decoder
    assert_quarters(whole(path, exact=exact), tolerance=12)


def test_damaged_exif_is_no_damage(tmp_path: Path, quarters: Image.Image) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(jpeg_of(quarters, exif=b"Exif\0\0II*\0\xff\xff\xff\xff\0\0"))
    assert_quarters(whole(path), tolerance=12)


def test_sixteen_bits_of_grey_are_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.frombytes("I;16", (2, 1), struct.pack("<HH", 0x4000, 0xC000)).save(path)
    image = whole(path, (2, 1), exact=True)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(64, 64, 64), (192, 192, 192)]


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" + struct.pack(">HHH", 0x8000, 0x4000, 0xFFFF))
    parts = [header, data, b"IEND"]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert whole(path, (1, 1)).getpixel((0, 0)) == (128, 64, 255)


def test_cmyk(tmp_path: Path, quarters: Image.Image, decoder: str) -> None:
    path = tmp_path / "cmyk.jpg"
    path.write_bytes(jpeg_of(quarters.resize((1600, 800)).convert("CMYK")))
    assert_quarters(whole(path), tolerance=12)


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "L", "1", "RGBA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (255, 255, 255, 255))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    path = tmp_path / "mode.png"
    (image.quantize(4) if mode in ("P", "PA") else image.convert(mode)).save(path)
    result = whole(path, (40, 40)).convert("RGB")
    assert (result.getpixel((5, 20)), result.getpixel((35, 20))) == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_palette_with_a_clear_colour(tmp_path: Path, kind: str) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 20, 40))
    path = tmp_path / "palette"
    image.save(path, kind, transparency=0)
    assert open_picture(path).info().transparent
    result = whole(path, (40, 40))
    assert result.mode == "RGBA"
    assert result.getpixel((5, 5))[3] == 0  # type: ignore[index]
    assert result.getpixel((35, 5)) == (0, 255, 0, 255)


def test_an_alpha_channel_without_a_clear_pixel_is_opaque(tmp_path: Path) -> None:
    path = tmp_path / "opaque.png"
    Image.new("RGBA", (40, 40), "red").save(path)
    assert not open_picture(path).info().transparent


def test_clear_pixels_lend_no_colour(tmp_path: Path) -> None:
    image = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 203, 400))
    path = tmp_path / "edge.png"
    image.save(path)
    result = whole(path, (40, 40))
    edge = [result.getpixel((x, 20)) for x in range(18, 23)]
    assert all(pixel[:3] == (255, 255, 255) for pixel in edge if pixel[3] > 8)  # type: ignore[index]


@pytest.mark.parametrize("exact", [False, True])
def test_a_colour_profile_is_applied(tmp_path: Path, exact: bool, decoder: str) -> None:
    """A Lab-named green of a profile with swapped primaries comes out as that profile means it."""
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = swapped.find(b"rXYZ"), swapped.find(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    description = swapped.find("sRGB".encode("utf-16-be"))
    if description > 0:
        swapped[description : description + 8] = "odd!".encode("utf-16-be")
    path = tmp_path / "profiled.jpg"
    path.write_bytes(jpeg_of(Image.new("RGB", (800, 800), (200, 40, 40)), icc_profile=bytes(swapped)))
    red_value, green_value, blue_value = whole(path, (50, 50), exact=exact).getpixel((25, 25))  # type: ignore[misc]
    assert (red_value < 60, green_value > 190, blue_value < 60) == (True, True, True), decoder


@pytest.mark.parametrize("profile", [b"rubbish", bytes(200), b"x" * 60_000])
def test_a_broken_profile_is_left_out(tmp_path: Path, quarters: Image.Image, profile: bytes) -> None:
    path = tmp_path / "profiled.jpg"
    path.write_bytes(jpeg_of(quarters, icc_profile=profile))
    assert_quarters(whole(path), tolerance=12)


def test_a_window_is_what_is_seen(tmp_path: Path, quarters: Image.Image, decoder: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(jpeg_of(quarters.resize((1600, 800))))
    seen = open_picture(path).resampled((100, 50), (800, 0, 1600, 400), exact=False)
    places = [(3, 3), (96, 3), (96, 46), (3, 46)]
    assert all(seen.getpixel(place) == pytest.approx(GREEN, abs=6) for place in places), decoder


def test_a_small_picture_is_enlarged(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "small.jpg"
    path.write_bytes(jpeg_of(Image.new("RGB", (20, 10), (10, 200, 30))))
    image = whole(path, (700, 350))
    assert image.size == (700, 350)
    assert image.getpixel((350, 175)) == pytest.approx((10, 200, 30), abs=4), decoder


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_picture_of_one_line(tmp_path: Path, size: tuple[int, int], decoder: str) -> None:
    path = tmp_path / "line.jpg"
    path.write_bytes(jpeg_of(Image.new("RGB", size, (10, 200, 30))))
    assert whole(path, (70, 35)).size == (70, 35), decoder


def test_fast_is_close_to_exact(tmp_path: Path, quarters: Image.Image, decoder: str) -> None:
    path = tmp_path / "picture.jpg"
    blurred = quarters.resize((1700, 850), Image.Resampling.BICUBIC)
    path.write_bytes(jpeg_of(blurred))
    fast, exact = whole(path, (500, 250)), whole(path, (500, 250), exact=True)
    error = sum((a - b) ** 2 for a, b in zip(fast.tobytes(), exact.tobytes(), strict=True)) / len(fast.tobytes())
    assert error < 255**2 / 10**3.9, decoder
