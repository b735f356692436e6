"""`python -m scripts.train_tiny`: train the demonstration checkpoint, or go on with it."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from scripts.train_tiny.export import folder_bytes
from scripts.train_tiny.loop import device
from scripts.train_tiny.training import (
    SMOKE_TRAINING,
    Training,
    export_saved,
    run,
    run_decoder,
    run_denoiser,
)

_ROOT = Path(__file__).resolve().parents[2]
_OUTPUT = _ROOT / "inference" / "checkpoints" / "tiny"
_WORK = _ROOT / "var" / "train-tiny"


class Stage(StrEnum):
    """What to train: the two stages need nothing of each other and may run side by side."""

    BOTH = "both"
    DECODER = "decoder"
    DENOISER = "denoiser"


def main(  # noqa: PLR0917 - Typer takes options as arguments
    output: Annotated[Path, typer.Option(help="Folder that the checkpoint is exported to.")] = _OUTPUT,
    work: Annotated[Path, typer.Option(help="Folder of the saves that a restart goes on from.")] = _WORK,
    vae_steps: Annotated[int | None, typer.Option(help="Steps of the autoencoder's stage.")] = None,
    unet_steps: Annotated[int | None, typer.Option(help="Steps of the denoiser's stage.")] = None,
    unet_batch: Annotated[int | None, typer.Option(help="Pictures in one step of the denoiser.")] = None,
    pool: Annotated[int | None, typer.Option(help="Chunks of 1024 pictures encoded for the denoiser.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of every stream.")] = 0,
    stage: Annotated[Stage, typer.Option(help="Train one stage only, and export nothing.")] = Stage.BOTH,
    minutes: Annotated[float | None, typer.Option(help="Save and stop each stage after this long.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores when not given.")] = None,
    export_only: Annotated[bool, typer.Option(help="Export the last save's averaged weights.")] = False,
    smoke: Annotated[bool, typer.Option(help="A size that takes seconds and learns nothing.")] = False,
) -> None:
    """Train the tiny checkpoint from nothing, resuming from WORK, and export it to OUTPUT."""
    console = Console()
    if threads is not None:
        torch.set_num_threads(threads)
    training = replace(SMOKE_TRAINING if smoke else Training(), seed=seed)
    training = replace(
        training,
        vae=replace(training.vae, steps=vae_steps or training.vae.steps),
        unet=replace(
            training.unet,
            steps=unet_steps or training.unet.steps,
            batch=unet_batch or training.unet.batch,
        ),
        chunks=pool or training.chunks,
    )
    if export_only:
        console.print(f"exported step {export_saved(training, work, output)} to {output}")
        return
    console.print(f"training on {device()}, saves in {work}")
    stop_after = None if minutes is None else minutes * 60
    if stage is not Stage.BOTH:
        train = run_decoder if stage is Stage.DECODER else run_denoiser
        done = train(training, work, stop_after)
        console.print(f"{stage}: {'done' if done else 'stopped at the time given'}")
    elif run(training, work, output, stop_after):
        console.print(f"exported {folder_bytes(output) / 1e6:.1f} MB to {output}")
    else:
        console.print("stopped at the time given; the same command goes on from here")


if __name__ == "__main__":
    typer.run(main)
