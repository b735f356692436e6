"""What a caller says of a frame, as a form or as JSON, checked before anything is stored."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from pydantic_core import from_json

from compositor.design import Design
from gateway.bodies import read_object
from gateway.multipart import is_form, read_form
from models.errors import FieldProblem, InvalidInputError
from models.fetch import FetchBlockedError, check_url
from models.wire import JobInput, invalid_input, parse_input

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from gateway.multipart import Form, Upload
    from gateway.settings import GatewaySettings
    from models.fetch import FetchPolicy

PICTURE_MAX_BYTES = 20 * 1024 * 1024
FORM_SPARE_BYTES = 4 * 1024 * 1024
"""For fields and the form's own lines, beside the files."""
REFRESH_LEAST_S = 300
REFRESH_MOST_S = 30 * 24 * 3600
CLEARABLE = ("feed_url", "webhook_url", "refresh_seconds")
"""An empty field of a form means none."""

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")
]


class FrameFields(BaseModel):
    """The fields of a frame that a caller may set; those not sent are left as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = ""
    feed_url: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    feed_mode: Literal["replace", "additional"] = "replace"
    refresh_seconds: Annotated[int, Field(ge=REFRESH_LEAST_S, le=REFRESH_MOST_S)] | None = None
    webhook_url: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    design: Design = Design()
    prompt: str | None = None
    generation: dict[str, Any] | None = None

    @field_validator("design", mode="after")
    @classmethod
    def _storable(cls, value: Design) -> Design:
        if "\\u0000" in value.model_dump_json() or "\x00" in value.model_dump_json():
            raise ValueError("must not contain NUL characters")
        return value


@dataclass(frozen=True, slots=True)
class FrameBody:
    """A checked body. `picture` and `feed` lie on the disk until the request ends; `job` is a picture to draw."""

    fields: FrameFields
    picture: Upload | None = None
    feed: Upload | None = None
    job: JobInput | None = None
    sent: frozenset[str] = field(default_factory=frozenset)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this body from another: its fields, and its files by content."""
        files = {"picture": self.picture, "feed": self.feed}
        return {
            "fields": self.fields.model_dump(mode="json", exclude_unset=True),
            **{name: upload.sha256 for name, upload in files.items() if upload is not None},
        }


@asynccontextmanager
async def read_frame(request: Request, settings: GatewaySettings, policy: FetchPolicy) -> AsyncIterator[FrameBody]:
    """The body of a request that makes or changes a frame.

    Raises:
        BadRequestError, TooLargeError: not readable, or too long.
        InvalidInputError: naming each wrong field.
        FetchBlockedError: an address that this server would not contact.

    """
    if not is_form(request):
        yield _checked(await read_object(request), None, policy)
        return
    limits = {"picture": PICTURE_MAX_BYTES, "feed": settings.feed_max_bytes}
    async with read_form(request, settings.uploads, fields=FrameFields.model_fields, files=limits) as form:
        yield _checked(_document(form), form, policy)


def _document(form: Form) -> dict[str, Any]:
    document: dict[str, Any] = dict(form.fields)
    for name in ("design", "generation"):
        if name in document:
            try:
                document[name] = from_json(document[name])
            except ValueError as problem:
                raise InvalidInputError.for_field(name, f"is not JSON: {problem}") from None
    for name in CLEARABLE:
        if document.get(name) == "":
            document[name] = None
    return document


def _checked(document: Any, form: Form | None, policy: FetchPolicy) -> FrameBody:
    try:
        fields = FrameFields.model_validate(document)
    except ValidationError as problem:
        raise invalid_input(problem) from None
    picture, feed = (form.files.get("picture"), form.files.get("feed")) if form else (None, None)
    _refuse_both("picture", picture, "prompt", fields.prompt)
    _refuse_both("feed", feed, "feed_url", fields.feed_url)
    for name, upload in (("picture", picture), ("feed", feed)):
        if upload is not None and upload.bytes == 0:
            raise InvalidInputError.for_field(name, "the file is empty")
    for name, url in (("feed_url", fields.feed_url), ("webhook_url", fields.webhook_url)):
        if url is not None:
            _check_url(name, url, policy)
    sent = fields.model_fields_set | set(form.files if form else ())
    return FrameBody(fields, picture, feed, _job(fields), frozenset(sent))


def _job(fields: FrameFields) -> JobInput | None:
    if fields.prompt is None:
        if fields.generation is not None:
            raise InvalidInputError.for_field("generation", "needs a prompt beside it")
        return None
    try:
        job = parse_input({**(fields.generation or {}), "prompt": fields.prompt})
    except InvalidInputError as problem:
        raise _of_generation(problem) from None
    if job.num_images != 1:
        raise InvalidInputError.for_field("generation.num_images", "must be 1: a frame has one picture")
    return job


def _of_generation(problem: InvalidInputError) -> InvalidInputError:
    """The same, with the names that the fields have in a frame's body."""
    found = [
        each if each.field == "prompt" else FieldProblem(f"generation.{each.field}", each.reason)
        for each in problem.details
    ]
    return InvalidInputError("; ".join(f"{each.field}: {each.reason}" for each in found), details=found)


def _refuse_both(first: str, one: object, second: str, other: object) -> None:
    if one is not None and other is not None:
        raise InvalidInputError.for_field(second, f"send this or {first}, not both")


def _check_url(name: str, url: str, policy: FetchPolicy) -> None:
    try:
        check_url(url, policy)
    except FetchBlockedError as problem:
        raise FetchBlockedError(f"{name}: {problem.message}", details=[FieldProblem(name, problem.message)]) from None


def form_schema(required: list[str]) -> dict[str, Any]:
    """The OpenAPI description of a frame's body, as a form and as JSON."""
    document = FrameFields.model_json_schema(ref_template="#/components/schemas/{model}")
    document.pop("$defs", None)
    file = {"type": "string", "format": "binary"}
    properties = {**document["properties"], "design": {"type": "object", "description": "See the documentation."}}
    plain = {"type": "object", "properties": properties, "required": required}
    form = {"type": "object", "properties": {**properties, "picture": file, "feed": file}, "required": required}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": plain}}
    return {"requestBody": {"required": True, "content": content}}
