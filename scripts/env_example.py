"""Writes `.env.example` and README.md's table of variables from the settings classes: scripts/env_example."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from compositor.settings import CompositorSettings
from gateway.settings import GatewaySettings
from inference.settings import InferenceSettings
from models.settings import CommonSettings
from scripts.calling.access import CallerSettings
from scripts.supervise.settings import SupervisorSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- variables: written by scripts/env_example -->"
END = "<!-- end of variables -->"
GROUPS: tuple[tuple[str, type[BaseSettings]], ...] = (
    ("all programs", CommonSettings),
    ("gateway", GatewaySettings),
    ("compositor", CompositorSettings),
    ("inference", InferenceSettings),
    ("scripts/up", SupervisorSettings),
    ("scripts/generate, scripts/smoke", CallerSettings),
)
HEADER = """\
# Settings of IGen. Copy to `.env`, which scripts/up reads; a variable of the environment wins over it.
# Written by scripts/env_example from the settings classes; do not edit. Values shown are the defaults.
"""


@dataclass(frozen=True)
class Variable:
    """One variable of the environment. `default` is empty where the description says what happens unset."""

    name: str
    default: str
    description: str
    read_by: str


def variables() -> list[Variable]:
    """Every variable of every program, in the order of the classes; one that several read is named once."""
    found: dict[str, Variable] = {}
    for program, kind in GROUPS:
        for field, info in kind.model_fields.items():
            name = str(info.validation_alias or f"{kind.model_config['env_prefix']}{field}".upper())
            if name not in found:
                found[name] = Variable(name, _default(info), info.description or "", program)
    return list(found.values())


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return f"{value:g}" if isinstance(value, float) else str(value)


def env_example() -> str:
    """The content of `.env.example`."""
    lines = [HEADER.rstrip()]
    program = ""
    for variable in variables():
        if variable.read_by != program:
            program = variable.read_by
            lines += ["", f"## {program}"]
        lines += ["", f"# {variable.description}", f"# {variable.name}={variable.default}"]
    return "\n".join(lines) + "\n"


def table() -> str:
    """README.md's table."""
    rows = ["| variable | default | what it is | read by |", "|---|---|---|---|"]
    for variable in variables():
        default = f"`{variable.default}`" if variable.default else ""
        description = variable.description.replace("|", "\\|")
        rows.append(f"| `{variable.name}` | {default} | {description} | {variable.read_by} |")
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """README.md with the table between its two markers replaced.

    Raises:
        ValueError: a marker is missing.

    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Write both files."""
    (ROOT / ".env.example").write_text(env_example(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(variables())} variables in .env.example and README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
