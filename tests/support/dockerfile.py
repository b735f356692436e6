"""A Dockerfile as data: its stages, and in each the instructions in order. Knows what our own files use, no more."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REFERENCE = re.compile(r"\$\{(\w+):-([^}]*)\}|\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in capitals, and all that follows, continuation lines joined."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, of the JSON form or of the plain one."""
        if self.text.startswith("["):
            listed: list[str] = json.loads(self.text)
            return listed
        return shlex.split(self.text)


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction | None:
        """The instruction of this kind that holds in the end."""
        found = [each for each in self.instructions if each.word == word]
        return found[-1] if found else None


def parse(path: Path) -> list[Stage]:
    """The stages of a file, comments left out."""
    stages: list[Stage] = []
    for instruction in _instructions(path.read_text(encoding="utf-8")):
        if instruction.word == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(base, name or str(len(stages))))
        else:
            stages[-1].instructions.append(instruction)
    return stages


def health_command(check: Instruction) -> list[str]:
    """What a HEALTHCHECK runs."""
    command: list[str] = json.loads(check.text.partition("CMD ")[2])
    return command


def container_of(path: Path) -> tuple[list[str], dict[str, str]]:
    """What a container of a file's last stage starts with: its command, and the variables that the stage sets."""
    last = parse(path)[-1]
    arguments: dict[str, str] = {}
    environment: dict[str, str] = {}
    for step in last.instructions:
        if step.word == "ARG":
            name, _, default = step.text.partition("=")
            arguments[name] = default.strip('"')
        elif step.word == "ENV":
            pairs = [word.partition("=") for word in step.words]
            environment |= {name: expand(value, {**arguments, **environment}) for name, _, value in pairs}
    command = [word for kind in ("ENTRYPOINT", "CMD") if (found := last.last(kind)) for word in found.words]
    return command, environment


def _instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not (line.strip() or pending):
            continue
        pending += line.strip().removesuffix("\\").rstrip() + " "
        if line.rstrip().endswith("\\"):
            continue
        word, _, rest = pending.strip().partition(" ")
        found.append(Instruction(word.upper(), rest.strip()))
        pending = ""
    return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Docker's own replacing of `$name`, `${name}` and `${name:-word}` in ENV, COPY and the like."""

    def value(found: re.Match[str]) -> str:
        if found[1]:
            return variables.get(found[1]) or found[2]
        return variables.get(found[3] or found[4], "")

    return REFERENCE.sub(value, text)
