"""Look a configuration over, and say in plain words what is wrong and how to mend it: scripts/doctor.

It reads the environment and `.env` as scripts/up does, writes nothing but a probe file and a probe object that it
deletes, and works before IGen runs and while it does.

Exit codes: 0 nothing is wrong (there may be warnings); 1 something is; 130 and 143 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Annotated

import structlog
import typer
from rich.console import Console

from scripts.calling.environment import adopt_environment
from scripts.calling.interruption import Interruption
from scripts.diagnosing.finding import Finding, State
from scripts.diagnosing.parts import findings

MARKS = {
    State.OK: "[green]ok     [/]",
    State.WARNING: "[yellow]warning[/]",
    State.FAULT: "[red]FAULT  [/]",
    State.SKIPPED: "[dim]-      [/]",
}
OK, FAULTY = 0, 1


def show(console: Console, finding: Finding) -> None:
    """One finding in a line, and how to mend it in another."""
    console.print(f"{MARKS[finding.state]} [bold]{finding.part}[/]: ", end="")
    console.print(finding.told, markup=False, highlight=False, soft_wrap=True)
    if finding.mend:
        console.print(f"        -> {finding.mend}", markup=False, highlight=False, soft_wrap=True)


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'s' * (number != 1)}"


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON alone.")] = False,
) -> None:
    """Look a configuration over, and say what is wrong and how to mend it."""
    console, errors = Console(), Console(stderr=True)
    interruption = Interruption()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )  # the findings say it already
    adopt_environment(enter=True)
    found: list[Finding] = []

    async def look() -> None:
        async for finding in findings():
            found.append(finding)
            if not as_json:
                show(console, finding)

    try:
        asyncio.run(look())
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        raise typer.Exit(interruption.code) from None
    faults = sum(finding.state is State.FAULT for finding in found)
    warnings = sum(finding.state is State.WARNING for finding in found)
    if as_json:
        print(json.dumps({"ok": faults == 0, "findings": [finding.as_json() for finding in found]}))
    else:
        console.print(f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}", highlight=False)
    raise typer.Exit(FAULTY if faults else OK)


if __name__ == "__main__":
    typer.run(main)
