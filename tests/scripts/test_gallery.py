"""The gallery is drawn by the engine, and its page shows every sheet."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from PIL import Image

from scripts.gallery import FOLDER, main
from scripts.picturing.contact import Cell, contact_sheet
from scripts.picturing.sheets import SHEETS
from tests.support.real_engine import needs_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

PAGE = FOLDER.parents[1] / "gallery.md"


@needs_checkpoint
def test_a_sheet_is_drawn_again_as_it_is_on_the_page(tmp_path: Path) -> None:
    main(["previews"], tmp_path)
    (drawn,) = tmp_path.iterdir()
    with Image.open(drawn) as new, Image.open(FOLDER / "previews.webp") as shown:
        assert new.size == shown.size
        pixels, before = (np.asarray(picture.convert("RGB")).astype(int) for picture in (new, shown))
    assert np.abs(pixels - before).mean() < 2, "run scripts/gallery; other processors differ by less"
    assert np.abs(pixels - 255).mean() > 20  # it is not all paper


def test_what_is_no_sheet_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"seed, x: there are seeds, steps, "):
        main(["previews", "seed", "x"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_every_sheet_and_they_are_small() -> None:
    shown = re.findall(r"\]\(images/gallery/(\w+)\.webp\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(SHEETS)
    files = list(FOLDER.iterdir())
    assert sorted(file.stem for file in files) == sorted(SHEETS)
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_cells_stand_in_rows_over_captions_as_wide_as_they() -> None:
    small, large = Cell(np.zeros((16, 16, 3), np.uint8), "a b"), Cell(np.zeros((256, 256), np.uint8), "word " * 30)
    assert small.picture.size == (128, 128)
    assert small.lines == ["a b"]
    assert len(large.lines) > 1
    sheet = np.asarray(contact_sheet([[small, large], [small]]))
    assert sheet.shape[1] == 128 + 256 + 3 * 10
    black = (sheet == 0).all(axis=2)
    assert black.sum() >= 2 * 128 * 128 + 256 * 256
    assert not black[:10].any()
