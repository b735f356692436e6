"""One key, one job: how a caller names a job, and how a repeat is told from another request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from inference.answers import encode
from models.errors import FieldProblem, InvalidInputError

if TYPE_CHECKING:
    from inference.jobs import JobRecord
    from models.wire import JobRequest

PICTURES = ("image", "mask")


def agree_on_key(header: str | None, field: str | None) -> str | None:
    """The job's id as its caller named it.

    Raises:
        InvalidInputError: header and field name different ids.

    """
    if header is not None and field is not None and header != field:
        reason = "the Idempotency-Key header and input.request_id must agree"
        problems = [FieldProblem("Idempotency-Key", reason), FieldProblem("input.request_id", reason)]
        raise InvalidInputError(reason, details=problems)
    return header or field


def fingerprint_of(request: JobRequest) -> str:
    """A hash of what decides the answer: the input without its id, and where the pictures go.

    Pictures in the request go in by their own hash, which spares copies of many megabytes.
    """
    pictures = {
        name: hashlib.sha256(source.encode()).hexdigest()
        for name in PICTURES
        if (source := getattr(request.input, name))
    }
    left_out = {"input": {"request_id", *PICTURES}}
    decisive = request.model_dump(mode="json", include={"input", "s3Config"}, exclude=left_out)
    return hashlib.sha256(encode(decisive | {"pictures": pictures})).hexdigest()


def same_job(known: JobRecord, fingerprint: str) -> JobRecord:
    """The known job, where this is a repeat of it.

    Raises:
        InvalidInputError: its id was used for another input.

    """
    if known.fingerprint != fingerprint:
        reason = "this id was used for a job with another input"
        raise InvalidInputError(
            reason, details=[FieldProblem("Idempotency-Key", reason), FieldProblem("input.request_id", reason)]
        )
    return known
