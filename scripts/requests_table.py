"""Writes the tables of docs/requests.md from the wire's own types: scripts/requests_table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.wire import HiresInput, JobInput, LoraInput, Policy, names_of

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "requests.md"
TABLES: dict[str, type[BaseModel]] = {"input": JobInput, "hires": HiresInput, "loras": LoraInput, "policy": Policy}
MULTIPLES_OF_EIGHT = ("width", "height")


def table(kind: type[BaseModel]) -> str:
    """One line a field: name, other names, bounds, default, meaning."""
    rows = ["| field | also | what it takes | default | what it is |", "|---|---|---|---|---|"]
    schema = kind.model_json_schema()
    for name, field in schema["properties"].items():
        others = ", ".join(f"`{other}`" for other in names_of(name)[1:]) if kind is JobInput else ""
        default = "**required**" if name in schema.get("required", ()) else _default(field.get("default"))
        rows.append(f"| `{name}` | {others} | {_takes(name, field)} | {default} | {field.get('description', '')} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with each table between its two markers replaced.

    Raises:
        ValueError: a marker is missing.

    """
    for name, kind in TABLES.items():
        begin, end = f"<!-- {name}: written by scripts/requests_table -->", f"<!-- end of {name} -->"
        before, begun, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise ValueError(f"docs/requests.md needs the lines {begin} and {end}")
        page = f"{before}{begin}\n{table(kind)}\n{end}{after}"
    return page


def _default(value: Any) -> str:
    if value is None:
        return ""
    if value in ([], ()):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _takes(name: str, field: dict[str, Any]) -> str:
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    said = " or ".join(_kind(kind) for kind in kinds)
    return f"{said}, a multiple of 8" if name in MULTIPLES_OF_EIGHT else said


def _kind(kind: dict[str, Any]) -> str:
    if "$ref" in kind:
        return "object, see below"
    if "enum" in kind:
        return " or ".join(f"`{value}`" for value in kind["enum"])
    if kind.get("type") == "array" and "$ref" in kind.get("items", {}):
        return f"list of objects, see below, at most {kind['maxItems']}"
    words = {"string": "text", "integer": "whole number", "array": "list", "boolean": "`true` or `false`"}
    said = words.get(kind.get("type", ""), kind.get("type", ""))
    if bounds := _bounds(kind):
        said += f", {bounds}"
    return f"{said} like `{kind['pattern']}`" if "pattern" in kind else said


def _bounds(kind: dict[str, Any]) -> str:
    least, above = kind.get("minimum", kind.get("minLength")), kind.get("exclusiveMinimum")
    most, below = kind.get("maximum", kind.get("maxLength", kind.get("maxItems"))), kind.get("exclusiveMaximum")
    unit = " characters" if "maxLength" in kind else ""
    if least is not None and most is not None:
        return f"{_number(least)} to {_number(most)}{unit}"
    parts = [("above", above), ("from", least), ("at most", most), ("below", below)]
    return ", ".join(f"{word} {_number(value)}{unit}" for word, value in parts if value is not None)


def _number(value: float) -> str:
    return f"{int(value)}" if float(value).is_integer() else f"{value:g}"


def main() -> int:
    """Write the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(JobInput.model_fields)} fields in docs/requests.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
