"""The contact sheet: twelve outputs, each by a path of its own through the compositor, captioned."""

from __future__ import annotations

import asyncio
import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from compositor.compose.client import ComposeClient, ComposeProcess
from compositor.compose.fonts import BUNDLED
from compositor.compose.job import ComposeJob
from compositor.design import Design

SIDE = 1080
TILE, CAPTION, GAP = 300, 26, 12
COLUMNS = 4
BADGE = "ast_" + "b" * 26
NEW = "ast_" + "n" * 26
ORIENTATION = 0x0112
SALE = {"title": "Aurora insulated bottle, 750 ml", "price": "24.90 EUR", "sale_price": "18.50 EUR"}
BOX = {"x": 190, "y": 150, "width": 700, "height": 640}
TITLE_BOX = {"x": 90, "y": 830, "width": 900, "height": 170}
BADGE_BOX = {"x": 760, "y": 60, "width": 260, "height": 260}
ARABIC = "قارورة ماء معزولة 750 مل"
LONG = (
    "Double-walled stainless steel bottle with bamboo lid, keeps drinks cold for a day and warm through the night, "
    * 2
)


@dataclass(frozen=True)
class Scene:
    """One output: which files, which design (as its JSON), which fields."""

    caption: str
    design: dict[str, object]
    source: str = "bottle.jpg"
    frame: str = "frame.png"
    fields: dict[str, str] = field(default_factory=lambda: dict(SALE))


def _text(text: str, **more: object) -> dict[str, object]:
    return {"text": text, "box": TITLE_BOX, "font": "bold", "size": 64, "colour": "#ffffff", **more}


BADGES = [{"asset": BADGE, "when": [{"field": "sale_price", "operator": "<", "value": "{price}"}]}, {"asset": NEW}]
SCENES = (
    Scene("contain, shadow", {"placement": {"box": BOX, "shadow": {"y": 24, "blur": 40, "colour": "#000000a0"}}}),
    Scene("cover, anchored to the top", {"placement": {"box": BOX, "fit": "cover", "anchor": "top", "radius": 60}}),
    Scene("stretch", {"placement": {"box": BOX, "fit": "stretch"}}),
    Scene(
        "card, text fitted, price in a box",
        {
            "placement": {"box": BOX, "padding": 40, "background": "#fff4e0", "radius": 80},
            "texts": [
                _text("{title}", max_lines=2),
                _text(
                    "{sale_price}",
                    box={"x": 640, "y": 660, "width": 330, "height": 100},
                    background="#d02030",
                    radius=50,
                    padding=16,
                ),
            ],
        },
    ),
    Scene(
        "right to left, outlined",
        {"placement": {"box": BOX}, "texts": [_text("{title}", outline={"colour": "#802000", "width": 5})]},
        fields={"title": ARABIC},
    ),
    Scene(
        "badge while on sale, discount",
        {
            "placement": {"box": BOX, "background": "#ffffff"},
            "badges": [{"box": BADGE_BOX, "badges": BADGES}],
            "texts": [_text("-{discount} until Sunday")],
        },
    ),
    Scene(
        "frame with a hole, over the product",
        {"placement": {"box": {"x": 160, "y": 120, "width": 760, "height": 760}, "fit": "cover"}},
        frame="hole.png",
    ),
    Scene("lies on its side, EXIF 6", {"placement": {"box": BOX}}, source="exif.jpg"),
    Scene("CMYK", {"placement": {"box": BOX}}, source="cmyk.jpg"),
    Scene(
        "turned by 12 degrees, round corners",
        {
            "placement": {
                "box": BOX,
                "fit": "cover",
                "rotation": 12,
                "radius": 70,
                "shadow": {"x": 16, "y": 24, "blur": 48},
            }
        },
    ),
    Scene(
        "9:16 of the same frame, badge",
        {
            "placement": {"box": BOX},
            "badges": [{"box": BADGE_BOX, "badges": BADGES}],
            "texts": [_text("{title}")],
            "sizes": [{"name": "story", "width": 1080, "height": 1920}],
        },
        fields={"title": "Just in: Aurora", "price": "24.90 EUR"},
    ),
    Scene(
        "palette PNG, clear ground; too long a text",
        {"placement": {"box": BOX}, "texts": [_text("{title}", max_lines=3, min_size=36)]},
        source="palette.png",
        fields={"title": LONG},
    ),
)


def bottle(*, clear: bool = False) -> Image.Image:
    """A product that shows which way is up and whether its colours are right."""
    image = Image.new("RGBA", (1400, 1800), (0, 0, 0, 0) if clear else (246, 246, 244, 255))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((420, 380, 980, 1700), 120, fill="#1f6f8b", outline="#123c4c", width=14)
    draw.rounded_rectangle((560, 120, 840, 400), 50, fill="#c9a26b", outline="#6f5630", width=14)
    draw.rectangle((420, 760, 980, 1240), fill="#fafafa")
    font = ImageFont.truetype(str(BUNDLED["bold"]), 130)
    draw.text((700, 890), "AURORA", fill="#222222", font=font.font_variant(size=110), anchor="mm")
    for number, colour in enumerate(("#ff0000", "#00b000", "#0000ff", "#ffd000", "#808080")):
        draw.rectangle((455 + 100 * number, 1020, 545 + 100 * number, 1180), fill=colour)
    return image


def write_files(folder: Path) -> None:
    """The scenes' frames, products and badges."""
    plain = bottle().convert("RGB")
    plain.save(folder / "bottle.jpg", quality=92)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain.transpose(Image.Transpose.ROTATE_90).save(folder / "exif.jpg", quality=92, exif=exif)
    plain.convert("CMYK").save(folder / "cmyk.jpg", quality=92)
    bottle(clear=True).quantize(64, Image.Quantize.FASTOCTREE).save(folder / "palette.png")
    ground = Image.linear_gradient("L").resize((SIDE, SIDE))
    frame = Image.merge(
        "RGB",
        (
            ground.point(lambda v: 40 + v // 4),
            ground.point(lambda v: 60 + v // 3),
            ground.point(lambda v: 150 - v // 4),
        ),
    )
    draw = ImageDraw.Draw(frame)
    draw.rectangle((24, 24, SIDE - 25, SIDE - 25), outline="#ffd27f", width=10)
    frame.save(folder / "frame.png")
    hole = frame.convert("RGBA")
    mask = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(mask).ellipse((170, 130, SIDE - 170, SIDE - 210), fill=0)
    hole.putalpha(mask)
    hole.save(folder / "hole.png")
    _badge("SALE", "#d02030").save(folder / "sale.png")
    _badge("NEW", "#208040").save(folder / "new.png")


def _badge(text: str, colour: str) -> Image.Image:
    image = Image.new("RGBA", (400, 400), (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, 391, 391), fill=colour, outline="white", width=12)
    draw.text((200, 200), text, fill="white", font=ImageFont.truetype(str(BUNDLED["bold"]), 110), anchor="mm")
    return image


async def _outputs(folder: Path) -> list[Image.Image]:
    assets = {BADGE: folder / "sale.png", NEW: folder / "new.png"}
    images = []
    with ComposeProcess() as process:
        async with ComposeClient(process.socket_path, process) as client:
            for scene in SCENES:
                design = Design.model_validate(scene.design)
                frame = folder / scene.frame
                info = await client.inspect(frame)
                size = design.output_sizes(info.width, info.height)[0]
                source = folder / scene.source
                job = ComposeJob(source, frame, info.transparent, design, size, scene.fields, assets)
                composed = await client.compose(job)
                images.append(Image.open(io.BytesIO(composed.data)).convert("RGB"))
    return images


def draw_sheet(path: Path) -> None:
    """Compose all scenes through the composing process and write the sheet."""
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name))
        images = asyncio.run(_outputs(Path(name)))
    rows = -(-len(images) // COLUMNS)
    step = TILE + GAP, TILE + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * step[0] + GAP, rows * step[1] + GAP), "#f2f2f2")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(BUNDLED["regular"]), 14)
    for number, (scene, image) in enumerate(zip(SCENES, images, strict=True)):
        left, top = GAP + number % COLUMNS * step[0], GAP + number // COLUMNS * step[1]
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (TILE - image.width) // 2, top))
        draw.text(
            (left + TILE // 2, top + TILE + CAPTION // 2), scene.caption, fill="#222222", font=font, anchor="mm"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
