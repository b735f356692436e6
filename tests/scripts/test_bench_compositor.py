from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from PIL import Image

from compositor.compose.client import ComposeClient, ComposeProcess
from scripts.bench_compositor import NAIVE, OURS, Bench, psnr
from scripts.compositing import products
from scripts.compositing.sheet import GAP, SCENES, TILE, draw_sheet

if TYPE_CHECKING:
    from pathlib import Path


def png(value: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (10, 10), (value, value, value)).save(target, "PNG")
    return target.getvalue()


def test_psnr() -> None:
    assert psnr(png(9), png(9)) == math.inf
    assert round(psnr(png(100), png(110)), 2) == round(20 * math.log10(255 / 10), 2)


async def test_every_contender_composes_the_same(tmp_path: Path) -> None:
    paths = products.write_products(tmp_path, 1)
    frame = products.write_frame(tmp_path / "frame.png")
    with ComposeProcess() as process:
        async with ComposeClient(process.socket_path) as client:
            bench = Bench(paths, frame, client)
            costs = await bench.run(0)
            assert {OURS, NAIVE} <= set(costs)
            assert all(0 < cost.cpu_s < 60 for cost in costs.values())
            compared = [name for name in costs if not name.startswith("floor")]
            assert all([await bench.fidelity(name) > 35 for name in compared])


def test_the_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    draw_sheet(path)
    with Image.open(path) as sheet:
        tiles = [
            sheet.crop((x, y, x + TILE, y + TILE))
            for y in range(GAP, sheet.height - TILE, TILE + GAP + 26)
            for x in range(GAP, sheet.width - TILE, TILE + GAP)
        ]
    assert len(tiles) == len(SCENES) == 12
    names = [scene.caption for scene in SCENES]
    upright, inks = tiles[names.index("lies on its side, EXIF 6")], tiles[names.index("CMYK")]
    files = []
    for tile in (upright, inks):
        target = io.BytesIO()
        tile.save(target, "PNG")
        files.append(target.getvalue())
    assert psnr(*files) > 30, "the same bottle, upright and in the same colours"
