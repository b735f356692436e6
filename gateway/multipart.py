"""Reading `multipart/form-data`: files go to the disk as they come, each under a limit of its own.

Starlette's own parser has one limit for the whole body, so a picture could be as long as a feed may be.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from models.errors import BadRequestError, FieldProblem, InvalidInputError, TooLargeError
from models.store import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping
    from pathlib import Path

    from starlette.requests import Request

FORM_TYPE = "multipart/form-data"
MAX_PARTS = 64
MAX_FIELD_BYTES = 512 * 1024
"""A design is the longest field; it is far below this."""
FLUSH_BYTES = 1024 * 1024
STALE_S = 24 * 3600.0
"""Longer than any upload takes."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a caller sent, whole, on this machine's disk until the end of the request."""

    path: Path
    bytes: int
    sha256: str
    filename: str


@dataclass(slots=True)
class Form:
    """The parts of a body by name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)


def is_form(request: Request) -> bool:
    """Whether the body says that it is `multipart/form-data`."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM_TYPE


@asynccontextmanager
async def read_form(
    request: Request, folder: Path, *, fields: Collection[str], files: Mapping[str, int]
) -> AsyncIterator[Form]:
    """The body's parts; their files are removed at the end of the block.

    Args:
        request: nothing of whose body was read yet.
        folder: where files go, made if need be.
        fields: names of fields that may come.
        files: names of files that may come, and the most bytes of each.

    Raises:
        BadRequestError: no multipart, malformed, cut off, or too many parts.
        InvalidInputError: a part of another name, one that came twice, or a field that is no UTF-8.
        TooLargeError: a file or a field over its limit.
        StoreError: the disk does not take it.

    """
    reader = _Reader(_boundary(request), folder, frozenset(fields), files)
    try:
        yield await reader.read(request)
    finally:
        await asyncio.to_thread(reader.remove)


@dataclass(slots=True)
class _Part:
    name: str
    filename: str | None
    limit: int
    data: bytearray = field(default_factory=bytearray)
    file: BinaryIO | None = None
    path: Path | None = None
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class _Reader:
    """The parser's callbacks collect; `_flush` writes what they collected, in a thread."""

    def __init__(self, boundary: bytes, folder: Path, fields: frozenset[str], files: Mapping[str, int]) -> None:
        self._boundary = boundary
        self._folder = folder
        self._fields = fields
        self._files = files
        self._parts: list[_Part] = []
        self._headers: dict[bytes, bytes] = {}
        self._header = bytearray()
        self._value = bytearray()
        self._waiting: list[tuple[_Part, bytes]] = []
        self._waiting_bytes = 0
        self._ended = False

    async def read(self, request: Request) -> Form:
        try:
            parser = MultipartParser(self._boundary, self._callbacks())  # type: ignore[arg-type] # plain functions
            async for chunk in request.stream():
                parser.write(chunk)
                if self._waiting_bytes >= FLUSH_BYTES:
                    await asyncio.to_thread(self._flush)
        except FormParserError as problem:
            raise _malformed(str(problem)) from None
        except ClientDisconnect:
            raise _malformed("it was cut off") from None
        if not self._ended:
            raise _malformed("it ends in the middle")
        await asyncio.to_thread(self._finish)
        return self._form()

    def remove(self) -> None:
        for part in self._parts:
            if part.file is not None:
                part.file.close()
            if part.path is not None:
                part.path.unlink(missing_ok=True)

    def _callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ended,
            "on_headers_finished": self._begin_part,
            "on_part_data": self._take,
            "on_end": self._end,
        }

    def _end(self) -> None:
        self._ended = True

    def _header_ended(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_part(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed("a part has no name")
        if len(self._parts) >= MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts")
        name = options[b"name"].decode("utf-8", "replace")[:100]
        filename = options.get(b"filename")
        known = self._files if filename is not None else self._fields
        if name not in known:
            raise InvalidInputError.for_field(name, _unknown(name, self._fields, self._files))
        if any(part.name == name for part in self._parts):
            raise InvalidInputError.for_field(name, "came twice")
        limit = MAX_FIELD_BYTES if filename is None else self._files[name]
        self._parts.append(_Part(name, None if filename is None else filename.decode("utf-8", "replace"), limit))

    def _take(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        part.size += end - start
        if part.size > part.limit:
            raise TooLargeError(
                f"{part.name}: is longer than {part.limit} bytes",
                details=[FieldProblem(part.name, f"is longer than {part.limit} bytes")],
            )
        if part.filename is None:
            part.data += data[start:end]
        else:
            self._waiting.append((part, data[start:end]))
            self._waiting_bytes += end - start

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        try:
            for part, data in waiting:
                self._open(part).write(data)
                part.digest.update(data)
        except OSError as problem:
            raise StoreError("The upload could not be kept on the disk.") from problem

    def _finish(self) -> None:
        self._flush()
        for part in self._parts:
            if part.filename is not None:
                with _as_store_error():
                    self._open(part).close()  # an empty file is a file

    def _open(self, part: _Part) -> BinaryIO:
        if part.file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.path = self._folder / secrets.token_hex(16)
            part.file = os.fdopen(os.open(part.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        return part.file

    def _form(self) -> Form:
        form = Form()
        for part in self._parts:
            if part.filename is None:
                form.fields[part.name] = _text(part)
            elif part.path is not None:
                name = part.filename.replace("\\", "/").rsplit("/", 1)[-1]
                form.files[part.name] = Upload(part.path, part.size, part.digest.hexdigest(), name)
        return form


class _as_store_error:  # noqa: N801 - used as `with`, where a verb reads better
    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        if isinstance(problem, OSError):
            raise StoreError("The upload could not be kept on the disk.") from problem


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind.lower() != FORM_TYPE.encode() or not boundary:
        raise BadRequestError(
            "Send the body as multipart/form-data.",
            details=[FieldProblem("Content-Type", "must be multipart/form-data with a boundary")],
        )
    return boundary


def _text(part: _Part) -> str:
    with suppress(UnicodeDecodeError):
        text = part.data.decode("utf-8")
        if "\x00" not in text:
            return text
    raise InvalidInputError.for_field(part.name, "must be UTF-8 text without NUL")


def _unknown(name: str, fields: frozenset[str], files: Mapping[str, int]) -> str:
    if name in fields:
        return "must be a plain field, without a file name"
    return "must be a file, with a file name" if name in files else "is not known here"


def _malformed(reason: str) -> BadRequestError:
    return BadRequestError(
        f"The body is not well-formed multipart/form-data: {reason}.", details=[FieldProblem("body", reason)]
    )


def remove_stale(folder: Path, unused_s: float = STALE_S) -> None:
    """Remove files that a killed process left in `folder`: nobody wrote to them for so long."""
    oldest = time.time() - unused_s
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another gateway clears the same folder
            if path.lstat().st_mtime < oldest:
                path.unlink()
