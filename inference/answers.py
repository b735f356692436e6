"""A job as JSON bytes. A result is encoded once and spliced in, so a poll of a large one costs no encoding."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from models.wire import JobAnswer, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inference.delivery import Preview
    from inference.jobs import JobRecord
    from models.wire import Progress

STREAM_CANCELLED = "cancelled: the job was cancelled"


def encode(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def brief_answer(record: JobRecord) -> bytes:
    """`{id, status}`, the answer of `/run`, `/cancel` and `/retry`."""
    return encode({"id": record.id, "status": record.state.value})


def full_answer(record: JobRecord, worker_id: str) -> bytes:
    """The answer of `/status`, `/runsync` and the webhook; keys without a value are absent."""
    answer = JobAnswer(
        id=record.id,
        status=record.state,
        delayTime=_milliseconds(record.created_at, record.started_at),
        executionTime=_milliseconds(record.started_at, record.ended_at),
        error=record.error,
        workerId=None if record.started_at is None else worker_id,
    )
    head = encode(answer.to_json())
    output = record.output
    if not record.state.terminal:
        output = encode({"progress": record.progress.model_dump(mode="json")})
    return head if output is None else head[:-1] + b',"output":' + output + b"}"


def stream_answer(record: JobRecord, chunks: Iterable[bytes]) -> bytes:
    """`{status, stream: [{output}]}`.

    The clients of RunPod's SDK read until COMPLETED, FAILED or TIMED_OUT and never stop at CANCELLED. So a cancelled
    job says CANCELLED once and FAILED, with the reason, to those who go on reading; `/status` always says CANCELLED.
    """
    status: dict[str, Any] = {"status": record.state.value}
    if record.state is JobState.CANCELLED and record.cancel_told:
        status = {"status": JobState.FAILED.value, "error": STREAM_CANCELLED}
    elif record.error is not None:
        status["error"] = record.error
    return encode(status)[:-1] + b',"stream":[' + b",".join(chunks) + b"]}"


def progress_chunk(progress: Progress) -> bytes:
    """A piece of `/stream` with the newest progress."""
    return encode({"output": {"progress": progress.model_dump(mode="json")}})


def preview_chunk(preview: Preview) -> bytes:
    """A piece of `/stream` with a preview."""
    return encode({"output": {"preview": asdict(preview)}})


def picture_chunk(index: int, seed: int, image: str, max_bytes: int) -> bytes:
    """A piece of `/stream` with a finished picture; one over `max_bytes` is announced without its pixels."""
    picture: dict[str, Any] = {"index": index, "seed": seed}
    if len(image) <= max_bytes - 200:  # the rest of the chunk is shorter than that
        return encode({"output": {"picture": {**picture, "image": image}}})
    return encode({"output": {"picture": {**picture, "omitted": f"larger than {max_bytes} bytes; see /status"}}})


def _milliseconds(since: float | None, until: float | None) -> int | None:
    return None if since is None or until is None else max(0, round(1000 * (until - since)))
