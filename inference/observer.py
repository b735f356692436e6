"""Between the handler and the book: what happens to a job, written into its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.answers import picture_chunk, preview_chunk

if TYPE_CHECKING:
    from inference.delivery import Preview
    from inference.jobs import JobBook, JobRecord
    from inference.metrics import Metrics
    from models.wire import Progress


class RecordObserver:
    """Writes what the handler reports into the job's record. What comes after the job's end changes nothing."""

    def __init__(self, book: JobBook, record: JobRecord, metrics: Metrics, chunk_bytes: int) -> None:
        self._book = book
        self._record = record
        self._metrics = metrics
        self._chunk_bytes = chunk_bytes

    def started(self) -> None:
        """The first picture got a slot."""
        self._book.start(self._record)

    def progressed(self, progress: Progress) -> None:
        """A step is done, or the place in the queue changed."""
        self._book.show_progress(self._record, progress)

    def previewed(self, preview: Preview) -> None:
        """There is a newer preview of a picture."""
        self._book.show_preview(self._record, preview.index, preview_chunk(preview))

    def picture(self, index: int, seed: int, image: str) -> None:
        """A picture is finished."""
        self._metrics.pictures.inc()
        self._book.add_chunk(self._record, picture_chunk(index, seed, image, self._chunk_bytes))
