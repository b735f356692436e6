"""A finished job's output, put together from what came out of the engine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inference.errors import CheckpointChangedError
from inference.receipts import receipt_of
from inference.verify import verify_output
from models.wire import JobOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.engine.types import Completed
    from inference.verify import Verification
    from inference.work import Work
    from models.wire import VerifyOutput


def job_output(done: Completed, work: Work, notes: Sequence[str] = ()) -> JobOutput:
    """The output of a job whose pictures are all delivered."""
    plan, drawn = work.plan, work.drawn_with(done)
    first = plan.first
    links = [task.result() for _, task in sorted(work.links.items())]
    files = [work.files[index] for index in sorted(work.files)]
    size = first.hires or first
    return JobOutput(
        images=links,
        image_url=links[0],
        seed=first.seed,
        seeds=plan.seeds,
        width=size.width,
        height=size.height,
        output_format=plan.file.format,
        demonstration=drawn.checkpoint.demonstration,
        ignored=list(plan.ignored),
        notes=[*plan.notes, *done.notes, *(file.note for file in files if file.note), *notes],
        flagged=[index for index, file in enumerate(files) if file.flagged],
        receipt=receipt_of(plan, drawn, _buckets(work), [file.sha256 for file in files]),
        timings=_timings(done, work),
    )


def verified_output(check: Verification, done: Completed, work: Work) -> VerifyOutput:
    """The output of a job that drew a receipt's pictures again.

    Raises:
        CheckpointChangedError: the checkpoint, now that it is loaded, is not the receipt's.

    """
    checks = [task.result() for _, task in sorted(work.checks.items())]
    receipt = receipt_of(work.plan, work.drawn_with(done), _buckets(work), [one.pixels_sha256 for one in checks])
    asked = check.receipt
    if asked.checkpoint_sha256 != receipt.checkpoint_sha256:
        raise CheckpointChangedError(
            f"'{receipt.checkpoint}' is another checkpoint here: its sha256 is {receipt.checkpoint_sha256}, "
            f"the receipt's {asked.checkpoint_sha256}"
        )
    return verify_output(asked, receipt, checks, _timings(done, work))


def _buckets(work: Work) -> list[int]:
    return [work.buckets[index] for index in sorted(work.buckets)]


def _timings(done: Completed, work: Work) -> dict[str, float]:
    timings = {
        "queue_s": done.queue_s,
        "run_s": done.run_s,
        "device_s": done.device_s,
        "predicted_queue_s": done.predicted.queue_s,
        "predicted_run_s": done.predicted.run_s,
        "encode_s": work.encode_s,
        "deliver_s": work.deliver_s,
        "total_s": time.monotonic() - work.started_at,
    }
    return {name: round(seconds, 4) for name, seconds in timings.items() if seconds is not None}
