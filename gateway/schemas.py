"""The shapes of answers, for the OpenAPI document alone: handlers build their JSON in `answers`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from models.wire import JobInput


class FieldProblemBody(BaseModel):
    """One field and what is wrong with it."""

    field: str
    reason: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    details: list[FieldProblemBody]
    retryable: bool
    request_id: str | None


class ErrorEnvelope(BaseModel):
    """Every answer that is not a success."""

    status: Literal["error"]
    error: ErrorBody
    id: str | None = None


class ImageBody(BaseModel):
    """One stored picture."""

    url: str
    seed: int | None
    width: int
    height: int
    bytes: int


class GeneratedAnswer(BaseModel):
    """A completed generation."""

    status: Literal["success"]
    id: str
    image_url: str
    images: list[ImageBody]
    seed: int | None
    seeds: list[int]
    width: int
    height: int
    checkpoint: str | None
    demonstration: bool
    ignored: list[str]
    notes: list[str]
    receipt: dict[str, Any] | None
    timings: dict[str, float | None]
    created_at: str


class GenerationAnswer(BaseModel):
    """One generation, whatever its state; a completed one has the fields of GeneratedAnswer and `input`."""

    status: Literal["running", "success", "error"]
    id: str
    input: dict[str, Any]
    created_at: str
    image_url: str | None = None
    images: list[ImageBody] | None = None
    error: ErrorBody | None = None


class GenerationList(BaseModel):
    """A page of generations."""

    generations: list[GenerationAnswer]
    next_before: str | None


_REASONS = {
    400: "Not well formed: no JSON, wrong content type, unknown Host.",
    401: "No valid key.",
    404: "Nothing there.",
    405: "The address does not take this method.",
    413: "The body is too long.",
    422: "A field is wrong, or the Idempotency-Key was used with another body.",
    429: "Over a limit; see Retry-After.",
    500: "A fault of the gateway.",
    502: "The backend failed, lost the job, or answered nonsense.",
    503: "The gateway or the backend is full, starting or stopping; see Retry-After.",
    504: "The picture was not ready in time.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": reason} for status, reason in _REASONS.items()
}

IDEMPOTENT: dict[str, Any] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "A retry with the same key and body joins the first request or gets its answer again.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        }
    ],
}
GENERATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": JobInput.model_json_schema(),
                "example": {"prompt": "A futuristic cityscape at sunset"},
            }
        },
    },
    **IDEMPOTENT,
}
