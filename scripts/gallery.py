"""Draws the pictures of docs/gallery.md with the bundled checkpoint: scripts/gallery [SHEETS]."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from scripts.picturing.contact import contact_sheet
from scripts.picturing.sheets import SHEETS
from scripts.picturing.studio import open_studio

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images" / "gallery"
QUALITY = 88  # of WebP: on flat pictures its losses cannot be seen, and a sheet has a tenth of a PNG's bytes


def main(
    sheets: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SHEETS)}; all without it.")] = None,
    folder: Annotated[Path, typer.Option(help="Where the sheets go.")] = FOLDER,
) -> None:
    """Draw contact sheets of every feature, each into one WebP file. The same machine draws the same again."""
    wanted = sheets or list(SHEETS)
    if unknown := [name for name in wanted if name not in SHEETS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(SHEETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, open_studio(Path(home)) as studio:
        for name in wanted:
            path = folder / f"{name}.webp"
            contact_sheet(SHEETS[name](studio)).save(path, quality=QUALITY, method=6)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
