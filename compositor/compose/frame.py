"""A frame made ready for one size, once for all products."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from compositor.compose import paint
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.picture import open_picture
from compositor.compose.placement import View
from compositor.design import default_box

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.job import ComposeJob
    from compositor.design import Box

WHITE = (255, 255, 255)
KEPT = 6
"""Prepared frames a process keeps: the sizes of a run or two."""
KEPT_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True)
class PreparedFrame:
    """A frame in one size.

    Attributes:
        view: how the output shows the frame.
        canvas: what stays of the frame where no product lies: an output begins as a copy of it.
        below: what a product is drawn on, if not on the canvas: the plain ground beneath a frame that lies over it.
        cover: what is then drawn over the product, or None.
        box: where the product goes, in pixels of the frame.

    """

    view: View
    canvas: Image.Image
    below: Image.Image | None
    cover: Image.Image | None
    box: Box


Key = tuple[object, ...]


class FrameCache:
    """The last few prepared frames; a file that is replaced is prepared anew."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, PreparedFrame] = OrderedDict()

    def get(self, job: ComposeJob) -> PreparedFrame:
        """The frame of this job.

        Raises:
            ComposeError: `bad_frame`.

        """
        key = _key(job)
        prepared = self._kept.get(key)
        if prepared is None:
            prepared = self._kept[key] = prepare(job)
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self._pixels() > KEPT_PIXELS):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return prepared

    def _pixels(self) -> int:
        return sum(3 * frame.view.width * frame.view.height for frame in self._kept.values())


def prepare(job: ComposeJob) -> PreparedFrame:
    """Decode, scale and, where nothing has to shine through, flatten a frame.

    Raises:
        ComposeError: `bad_frame`.

    """
    try:
        picture = open_picture(job.frame)
        view = View.of((picture.width, picture.height), job.size)
        image = picture.resampled((view.width, view.height), view.window(), exact=True)
    except ComposeError as error:
        raise ComposeError(ComposeCode.BAD_FRAME, f"The frame: {error.message}") from error
    layer = job.design.layer or ("over" if job.transparent else "under")
    kind = job.design.output.kind
    ground = _ground(image, kind)
    canvas = ground.copy()
    paint.onto(canvas, image, 0, 0)
    asked = job.design.placement.box
    box = asked.clamped(picture.width, picture.height) if asked else default_box(picture.width, picture.height)
    if layer == "under":
        return PreparedFrame(view, canvas, None, None, box)
    return PreparedFrame(view, canvas, ground, image, box)


def _ground(image: Image.Image, kind: str) -> Image.Image:
    """White beneath everything, or nothing where the file format can leave pixels open."""
    if image.mode == "RGBA" and kind != "jpeg":
        return Image.new("RGBA", image.size, (0, 0, 0, 0))
    return Image.new("RGB", image.size, WHITE)


def _key(job: ComposeJob) -> Key:
    design = job.design
    made_of = (job.size.width, job.size.height, design.layer, design.output.kind, design.placement.box)
    return (*file_key(job.frame), job.transparent, *made_of)


def file_key(path: Path) -> Key:
    """What tells a file from the one that replaces it.

    Raises:
        ComposeError: `bad_frame`: there is none.

    """
    try:
        found = path.stat()
    except OSError as error:
        raise ComposeError(ComposeCode.BAD_FRAME, "The file is gone.") from error
    return str(path), found.st_ino, found.st_mtime_ns, found.st_size
