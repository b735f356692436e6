"""Measure how well a tiny checkpoint follows captions of combinations that its training never saw."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from diffusers import StableDiffusionXLPipeline
from rich.console import Console
from rich.progress import track
from rich.table import Table

from scripts.train_tiny.captions import describe
from scripts.train_tiny.checker import FIELDS, Reading, read_picture
from scripts.train_tiny.pictures import ShapePicture, held_out_pictures
from scripts.train_tiny.sheet import PROMPTS, draw_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

_CHECKPOINT = Path(__file__).resolve().parent.parent / "inference" / "checkpoints" / "tiny"
GOALS = {"background": 0.95, "colour": 0.95, "shape": 0.90, "position": 0.95, "size": None}
"""The least share of agreement for each field; size is reported without a goal."""
_BATCH = 16
_SHEET_SEED = 7


def load(checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """Load the plain pipeline with no other argument, and the defaults that igen.json gives its callers."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    defaults = json.loads((checkpoint / "igen.json").read_text())["defaults"]
    # The checkpoint's own scheduler is the one that the defaults name.
    defaults.pop("scheduler")
    return pipeline, defaults


def draw(pipeline: Any, prompts: Sequence[str], seed: int, **settings: Any) -> list[Image.Image]:
    """Draw one picture a prompt in batches; picture number n starts from the noise of `seed` + n."""
    negative = settings.pop("negative_prompt")
    pictures: list[Image.Image] = []
    for first in track(range(0, len(prompts), _BATCH), description="drawing", transient=True):
        batch = list(prompts[first : first + _BATCH])
        generators = [torch.Generator().manual_seed(seed + first + n) for n in range(len(batch))]
        drawn = pipeline(prompt=batch, negative_prompt=[negative] * len(batch), generator=generators, **settings)
        pictures.extend(drawn.images)
    return pictures


def adherence(wanted: Sequence[ShapePicture], readings: Sequence[Reading]) -> dict[str, float]:
    """Return the share of pictures that show what was wanted, field by field and in all five at once."""
    rows = [reading.agrees(one) for one, reading in zip(wanted, readings, strict=True)]
    shares = {field: sum(row[field] for row in rows) / len(rows) for field in FIELDS}
    return {**shares, "all five": sum(all(row.values()) for row in rows) / len(rows)}


def _table(shares: dict[str, float], title: str) -> Table:
    table = Table("field", "agreement", "goal", "", title=title)
    for field, share in shares.items():
        goal = GOALS.get(field)
        verdict = "" if goal is None else "met" if share >= goal else "missed"
        table.add_row(field, f"{share:.1%}", "" if goal is None else f"{goal:.0%}", verdict)
    return table


def _met(shares: dict[str, float]) -> bool:
    return all(goal is None or shares[field] >= goal for field, goal in GOALS.items())


def main(  # noqa: PLR0917 - Typer takes options as arguments
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")] = _CHECKPOINT,
    count: Annotated[int, typer.Option(help="How many held-out captions to draw.")] = 240,
    seed: Annotated[int, typer.Option(help="Seed of the first picture's noise.")] = 1000,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of igen.json's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance, instead of igen.json's.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt, instead of igen.json's.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet PNG here.")] = None,
    faults: Annotated[bool, typer.Option(help="List the pictures that miss.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 1 when a goal is missed.")] = False,
) -> None:
    """Draw held-out captions with the plain pipeline and print how many pictures show what they say."""
    console = Console()
    pipeline, settings = load(checkpoint)
    given = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative}
    settings |= {name: value for name, value in given.items() if value is not None}
    console.print(f"{checkpoint}: {settings}")
    met = True
    if count:
        wanted = held_out_pictures(count)
        started = time.monotonic()
        pictures = draw(pipeline, [describe(one) for one in wanted], seed, **settings)
        spent = time.monotonic() - started
        readings = [read_picture(np.asarray(picture)) for picture in pictures]
        shares = adherence(wanted, readings)
        console.print(_table(shares, f"{len(wanted)} held-out captions, {spent / len(wanted):.2f} s a picture"))
        if faults:
            _list_faults(console, wanted, readings)
        met = _met(shares)
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(draw(pipeline, PROMPTS, _SHEET_SEED, **settings), PROMPTS).save(sheet, optimize=True)
        console.print(f"contact sheet: {sheet}")
    if strict and not met:
        raise typer.Exit(1)


def _list_faults(console: Console, wanted: Sequence[ShapePicture], readings: Sequence[Reading]) -> None:
    for number, (one, reading) in enumerate(zip(wanted, readings, strict=True)):
        wrong = [field for field, right in reading.agrees(one).items() if not right]
        if wrong:
            shown = ", ".join(f"{field} {getattr(reading, field)}" for field in wrong)
            console.print(f"{number}: {describe(one)}: {shown}")


if __name__ == "__main__":
    typer.run(main)
