"""From the engine's pixels to a file: hash, hooks, parameters, encoding. Blocking work for the encoder's threads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inference.hooks import HookContext
from inference.infotext import infotext
from inference.pictures import encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.engine.types import PictureDone
    from inference.hooks import Hooks
    from inference.infotext import DrawnWith
    from inference.pictures import PictureFile
    from inference.plan import Plan


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture's file and what is said of it; `sha256` is over the raw pixels."""

    file: PictureFile
    sha256: str
    flagged: bool
    note: str


def finish_picture(plan: Plan, event: PictureDone, drawn: DrawnWith, hooks: Hooks) -> Finished:
    """One picture's way to its file.

    Raises:
        GenerationFailedError: a hook failed.

    """
    spec = plan.job.pictures[event.index]
    context = HookContext(
        plan.job.id, event.index, event.seed, spec.prompt, spec.negative_prompt, drawn.checkpoint.checkpoint
    )
    hooked = hooks.apply(event.pixels, context)
    text = infotext(spec, drawn) if plan.file.metadata else None
    file = encode(hooked.pixels, plan.file.format, plan.file.quality, text)
    return Finished(file, pixels_sha256(event.pixels), hooked.flagged, hooked.note)


def pixels_sha256(pixels: NDArray[np.uint8]) -> str:
    """Hash of raw pixels, uint8 [height, width, 3], row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
