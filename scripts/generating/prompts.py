"""A file of prompts into checked requests. Nothing is sent while one row is wrong."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import InvalidInputError
from models.wire import JobInput, parse_input
from models.wire_input import names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

TEXT_FIELDS = (
    *("prompt", "negative_prompt", "refiner_negative_prompt", "prompt_syntax", "scheduler", "checkpoint"),
    *("image", "mask", "refiner", "output_format", "request_id"),
)
"""Columns whose cells are taken as they are; the others are JSON (30, true, [...]), or text where they are not."""
MOST_CELL_CHARS = 30_000_000
SHOWN_PROBLEMS = 50


class PromptsError(Exception):
    """The file, or rows of it, cannot be used; each line of the message names a place and a reason."""

    def __init__(self, lines: Sequence[str]) -> None:
        shown = [*lines[:SHOWN_PROBLEMS]]
        if len(lines) > SHOWN_PROBLEMS:
            shown.append(f"... and {len(lines) - SHOWN_PROBLEMS} more")
        super().__init__("\n".join(shown))


@dataclass(frozen=True, slots=True)
class Prompt:
    """One checked request: the row's number, from 1, and what is sent."""

    position: int
    input: dict[str, Any]

    @property
    def canonical(self) -> str:
        """One text for one request, whatever the order of its fields."""
        return json.dumps(self.input, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def read_prompts(path: Path, defaults: Mapping[str, Any]) -> Iterator[Prompt]:
    """The rows of a .csv, .tsv or .jsonl file; a field of `defaults` counts where a row has none.

    Raises:
        PromptsError: at the end, naming every bad row; or at once where the file as a whole is wrong.

    """
    rows = _rows(path)
    problems: list[str] = []
    count = 0
    try:
        for count, (place, row) in enumerate(rows, 1):
            found = _checked(place, row, defaults, problems)
            if found is not None and not problems:  # with a problem nothing more is used, only looked at
                yield Prompt(count, found)
    except UnicodeDecodeError:
        raise PromptsError([f"{path}: is not UTF-8 text"]) from None
    except OSError as problem:
        raise PromptsError([f"{path}: cannot be read: {problem.strerror}"]) from None
    if problems:
        raise PromptsError(problems)
    if count == 0:
        raise PromptsError([f"{path}: has no prompts"])


def one_prompt(text: str, defaults: Mapping[str, Any]) -> Prompt:
    """The prompt of the command line.

    Raises:
        PromptsError: it is refused.

    """
    problems: list[str] = []
    found = _checked("PROMPT", {"prompt": text}, defaults, problems)
    if found is None:
        raise PromptsError(problems)
    return Prompt(1, found)


def read_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs of the command line as fields, read as a table's cells are.

    Raises:
        PromptsError: no such pair, or a field that there is not.

    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise PromptsError([f"--set: {pair!r} is not NAME=VALUE"])
        field = _field_of(name.strip())
        if field is None:
            raise PromptsError([f"--set: there is no field {name.strip()!r}"])
        found[field] = _cell(field, value)
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Place and fields of each row, or in their stead what is wrong with it."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _table(path, "\t" if kind == ".tsv" else ",")
    if kind in (".jsonl", ".ndjson"):
        return _lines(path)
    raise PromptsError([f"{path}: must be a .csv, .tsv or .jsonl file"])


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    csv.field_size_limit(MOST_CELL_CHARS)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                place = f"{path}:{reader.line_num}"
                if len(cells) > len(header):
                    yield place, f"has {len(cells)} cells, the header {len(header)}; quote cells with a {delimiter!r}"
                else:
                    yield place, _fields(header, cells)
        except csv.Error as problem:
            raise PromptsError([f"{path}:{reader.line_num}: is no well-formed table: {problem}"]) from None


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise PromptsError([f"{path}: has no header; its first line names the columns, `prompt` among them"])
    problems = [f"{path}:1: there is no field {name!r}" for name in header if _field_of(name) is None]
    fields = [_field_of(name) for name in header]
    problems += [
        f"{path}:1: two columns are {name!r}" for name in sorted({n for n in fields if n}) if fields.count(name) > 1
    ]
    if "prompt" not in fields:
        problems.append(f"{path}:1: there is no column `prompt`")
    if problems:
        raise PromptsError(problems)


def _fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    pairs = zip(header, cells, strict=False)
    return {name: _cell(_field_of(name) or name, cell) for name, cell in pairs if cell.strip()}


def _cell(field: str, text: str) -> Any:
    if field in TEXT_FIELDS:
        return text
    plain = text.strip()
    if plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    try:
        return json.loads(plain)
    except ValueError:
        return plain  # a name, such as a style's; for a number the check says so


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line, object_pairs_hook=_once_each)
            except ValueError as problem:
                yield place, f"is no JSON: {problem}"
                continue
            yield place, row if isinstance(row, dict) else "is no JSON object"


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _checked(
    place: str, row: dict[str, Any] | str, defaults: Mapping[str, Any], problems: list[str]
) -> dict[str, Any] | None:
    """What is sent for a row; None, with its problems added, where it is wrong."""
    if isinstance(row, str):
        problems.append(f"{place}: {row}")
        return None
    given = {_field_of(name) for name in row}
    try:
        job = parse_input({**{name: value for name, value in defaults.items() if name not in given}, **row})
    except InvalidInputError as refused:
        problems += [f"{place}: {detail.field}: {detail.reason}" for detail in refused.details] or [
            f"{place}: {refused.message}"
        ]
        return None
    return job.model_dump(mode="json", exclude_unset=True)


def _field_of(name: str) -> str | None:
    return next((field for field in JobInput.model_fields if name in names_of(field)), None)
