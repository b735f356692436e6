"""Who hears how a job goes, and where its pictures go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from inference.pictures import PictureEncoder, PictureFile
    from models.wire import Progress


@dataclass(frozen=True, slots=True)
class Preview:
    """A rough, small picture of what is being drawn; `image` is a data URL of a JPEG.

    `seq` counts the job's previews, `step` and `steps` are those of the picture `index`.
    """

    index: int
    seq: int
    step: int
    steps: int
    image: str


class Observer(Protocol):
    """Who wants to know how a job goes. Called on the event loop; must return at once."""

    def started(self) -> None:
        """The first picture got a slot."""

    def progressed(self, progress: Progress) -> None:
        """A step is done, or the place in the queue changed."""

    def previewed(self, preview: Preview) -> None:
        """There is a newer preview of a picture."""

    def picture(self, index: int, seed: int, image: str) -> None:
        """A picture is finished; `image` is what the output will hold for it."""


class Delivery(Protocol):
    """Where finished pictures go."""

    async def deliver(self, job_id: str, index: int, picture: PictureFile) -> str:
        """Store one picture; the answer stands in the output's `images`.

        Raises:
            UploadFailedError: it could not be stored.

        """


class InlineDelivery:
    """Pictures stand in the output itself, as data URLs."""

    def __init__(self, encoder: PictureEncoder) -> None:
        self._encoder = encoder

    async def deliver(self, job_id: str, index: int, picture: PictureFile) -> str:  # noqa: ARG002 - Delivery's signature
        """The picture as a data URL."""
        return await self._encoder.data_url(picture)
