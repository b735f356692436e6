from __future__ import annotations

import pytest

from models.wire import JobInput, names_of
from scripts.requests_table import PAGE, table, with_tables


def test_the_page_is_that_of_the_wires_types() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run scripts/requests_table"


def test_every_field_has_a_line_with_its_other_names_and_a_meaning() -> None:
    lines = table(JobInput).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(JobInput.model_fields)
    for line, field in zip(lines, JobInput.model_fields, strict=True):
        _, _, also, takes, _, meaning, _ = [part.strip() for part in line.split("|")]
        assert also == ", ".join(f"`{name}`" for name in names_of(field)[1:])
        assert takes
        assert meaning


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("seed", "whole number, from -1, below 4294967296 |"),
        ("guidance_scale", "number, 0 to 50 |"),
        ("width", "whole number, 64 to 4096, a multiple of 8 |"),
        ("output_format", "`png` or `jpeg` or `webp` | `png` |"),
        ("prompt", "text, 1 to 1000 characters | **required** |"),
        ("deadline_s", "number, above 0, at most 604800 |"),
        ("loras", "list of objects, see below, at most 8 | none |"),
        ("strict", "`true` or `false` | `false` |"),
        ("image", "| text |"),
    ],
)
def test_bounds_are_the_types(field: str, text: str) -> None:
    (line,) = [line for line in table(JobInput).splitlines() if line.startswith(f"| `{field}` ")]
    assert text in line


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        with_tables("nothing")
