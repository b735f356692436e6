"""What the fields of the wire are made of: texts, sides, names, sources of pictures."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

SEED_COUNT = 2**32
"""Seeds are whole numbers below this; picture i of a job has seed (seed + i) mod SEED_COUNT."""

PROMPT_MAX_CHARS = 1000
URL_MAX_CHARS = 4096
INLINE_MAX_CHARS = 28_000_000  # 20 MB as base64; the body's own limit is met before
STYLES_MAX = 8


def _multiple_of_eight(value: int) -> int:
    if value % 8:
        raise ValueError(f"must be a multiple of 8; {value - value % 8} and {value - value % 8 + 8} are nearest")
    return value


def _printable(value: str) -> str:
    if any(unicodedata.category(char) == "Cc" and char not in "\t\n\r" for char in value):
        raise ValueError("must not contain control characters")
    return value


def is_link(source: str) -> bool:
    """Whether a picture is given by its address and not in the request itself."""
    return source[:8].lower().startswith(("http://", "https://"))


def _picture_source(value: str) -> str:
    if not is_link(value):
        return value  # its base64 is read where the picture is
    if len(value) > URL_MAX_CHARS:
        raise ValueError(f"an address may have at most {URL_MAX_CHARS} characters")
    return _printable(value)


def _one_as_list(value: object) -> object:
    return [value] if isinstance(value, str) else none_as_empty(value)


def none_as_empty(value: object) -> object:
    """A list that was sent as null has nothing in it."""
    return () if value is None else value


PromptText = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=PROMPT_MAX_CHARS),
    AfterValidator(_printable),
]
NegativeText = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=PROMPT_MAX_CHARS), AfterValidator(_printable)
]
PlainText = Annotated[str, AfterValidator(_printable)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Side = Annotated[int, Field(strict=True, ge=64, le=4096), AfterValidator(_multiple_of_eight)]
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
PictureSource = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=INLINE_MAX_CHARS),
    AfterValidator(_picture_source),
    WithJsonSchema({"type": "string"}),  # the body's limit is met before that of its length
]
Styles = Annotated[
    tuple[Name, ...],
    Field(max_length=STYLES_MAX),
    BeforeValidator(_one_as_list),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": STYLES_MAX}]}
    ),
]


class Wire(BaseModel):
    """Root of the wire's types: frozen, unknown fields refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _jpg_is_jpeg(value: object) -> object:
    return "jpeg" if value == "jpg" else value


OutputFormat = Annotated[Literal["png", "jpeg", "webp"], BeforeValidator(_jpg_is_jpeg)]
