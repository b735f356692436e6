from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from rich.console import Console

from compositor.compose.client import ComposeClient, ComposeProcess
from scripts.bench_compositor import NAIVE, OURS, Bench, psnr
from scripts.compositing import products, whole_run
from scripts.compositing.bare import Cost
from scripts.compositing.rig import opened
from scripts.compositing.sheet import GAP, SCENES, TILE, draw_sheet

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench_compositor import Kind


def png(value: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (10, 10), (value, value, value)).save(target, "PNG")
    return target.getvalue()


def test_psnr() -> None:
    assert psnr(png(9), png(9)) == math.inf
    assert round(psnr(png(100), png(110)), 2) == round(20 * math.log10(255 / 10), 2)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
async def test_every_contender_composes_the_same(tmp_path: Path, kind: Kind) -> None:
    paths = products.write_products(tmp_path, 1)
    frame = products.write_frame(tmp_path / "frame.png")
    with ComposeProcess() as process:
        async with ComposeClient(process.socket_path) as client:
            bench = Bench(paths, frame, client, kind)
            costs = await bench.run(0)
            assert {OURS, NAIVE} <= set(costs)
            assert all(0 < cost.cpu_s < 60 for cost in costs.values())
            compared = [name for name in costs if not name.startswith("floor")]
            assert all([await bench.fidelity(name) > 35 for name in compared])
            for name in compared:
                with Image.open(io.BytesIO(await bench.contenders[name](paths[0]))) as made:
                    assert made.format == kind.upper(), name


async def test_whole_runs_beside_their_parts() -> None:
    """Real workers and origin; `series` raises unless what should be reused was."""
    count = whole_run.CHANGED + 2
    async with opened(count, None) as bench:
        await bench.worker()
        found = await whole_run.series(bench, 5)
        alone = await bench.composing(1)
    assert found.composed == whole_run.CHANGED
    assert found.again.wall_s < found.first.wall_s
    assert all(cost.wall_s > 0 for cost in (found.first, found.changed, found.asking, alone))
    assert found.first.cpu_s > 0.5 * alone.cpu_s > 0, "composing is a part of it"


def test_the_goals_of_whole_runs() -> None:
    one, two, nothing = Cost(2, 2), Cost(1, 2), Cost(0.05, 0)
    runs = whole_run.Series(first=two, again=nothing, changed=nothing, asking=nothing, composed=whole_run.CHANGED)
    ideal = whole_run.Measured(100, 50, one, two, one, runs, runs, two)
    console = Console(file=io.StringIO(), width=118)
    assert whole_run.report(console, ideal)
    slow, wrong = dataclasses.replace(runs, first=one), dataclasses.replace(runs, composed=9)
    again = dataclasses.replace(runs, again=two)
    for worse in ({"slow": slow}, {"slow": wrong}, {"at_once": again}, {"one_worker": two}):
        assert not whole_run.report(console, dataclasses.replace(ideal, **worse)), worse


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
