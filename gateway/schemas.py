"""The shapes of answers, for the OpenAPI document alone: handlers build their JSON in `answers`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from models.wire import JobInput, OutputFormat, Receipt, VerifyOutput, VerifyRequest, names_of


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
    media_type: str
    seed: int | None
    width: int
    height: int
    bytes: int
    flagged: bool


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
    output_format: OutputFormat
    checkpoint: str | None
    demonstration: bool
    ignored: list[str]
    notes: list[str]
    flagged: list[int]
    receipt: Receipt | dict[str, Any] | None
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


class AcceptedAnswer(GenerationAnswer):
    """A generation that goes on, and where to follow it."""

    url: str
    events_url: str


class VerifiedAnswer(VerifyOutput):
    """How pictures that were drawn again compare."""

    status: Literal["success"]


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

ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {"model": AcceptedAnswer, "description": "With `Prefer: respond-async`: the job goes on."}
}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema with its parts in their places: references would look for them in the whole document."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return {
                    **put(parts[value["$ref"].rpartition("/")[2]]),
                    **{k: v for k, v in value.items() if k != "$ref"},
                }
            return {name: put(item) for name, item in value.items()}
        return [put(item) for item in value] if isinstance(value, list) else value

    inlined: dict[str, Any] = put(schema)
    return inlined


def _with_aliases(schema: dict[str, Any]) -> dict[str, Any]:
    """The input's schema with every name under which a field may be sent."""
    properties = {}
    for field in JobInput.model_fields:
        described = schema["properties"][field]
        first, *others = names_of(field)
        properties[first] = described
        note = {"description": f"Another name of `{first}`; send one of them."}
        properties |= {other: {**described, **note} for other in others}
    return {**schema, "properties": properties}


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
                "schema": _with_aliases(_inlined(JobInput)),
                "example": {"prompt": "A futuristic cityscape at sunset"},
            }
        },
    },
    "parameters": [
        *IDEMPOTENT["parameters"],
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": "`respond-async`: do not wait for the pictures; 202 with the job's address.",
            "schema": {"type": "string"},
        },
    ],
}
VERIFY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {"generation": {"type": "string", "description": "One of your own."}},
                            "required": ["generation"],
                        },
                        _inlined(VerifyRequest),
                    ]
                },
                "example": {"generation": "gen_01m7zks44j5d4efhdnpzf1m5zt"},
            }
        },
    },
}
