"""Try a live deployment from end to end: scripts/smoke URL.

It draws one picture (which a backend that charges charges for), frames a feed of two products, and deletes both at
the end. The products' picture is the one just drawn, by its own link, so the workers must be allowed to fetch from
the gateway's public address; with --origin two pictures are served from here in its place.

Exit codes: 0 every step passed; 1 one failed; 2 the command line is wrong; 130 and 143 interrupted.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from scripts.calling.access import Access, AccessError, find_access
from scripts.calling.environment import adopt_environment
from scripts.calling.gateway import Gateway
from scripts.calling.interruption import Interruption
from scripts.smoking.drawing import Drawing
from scripts.smoking.framing import Framing
from scripts.smoking.origin import OriginError, origin
from scripts.smoking.steps import Steps

if TYPE_CHECKING:
    from scripts.smoking.steps import Outcome

MARKS = {"ok": "[green]ok     [/]", "failed": "[red]FAILED [/]", "skipped": "[yellow]skipped[/]"}
PROMPT = "A red circle on a white background"


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, checked."""

    access: Access
    prompt: str
    origin: str | None
    framing: bool
    run_s: float


async def smoke(request: Request, steps: Steps) -> None:
    """Take every step.

    Raises:
        OriginError: the address for product pictures cannot be listened on.

    """
    async with Gateway(request.access) as gateway:
        drawing = Drawing(gateway, request.prompt)
        try:
            await drawing.take(steps)
            await frame(gateway, drawing.picture_url, request, steps)
        finally:
            await drawing.clean_up(steps)


async def frame(gateway: Gateway, picture_url: str, request: Request, steps: Steps) -> None:
    """Frame pictures of the origin, or the one just drawn."""
    if not request.framing:
        steps.skip("frame", "left out")
    elif request.origin is not None:
        async with origin(request.origin) as links:
            await Framing(gateway, links, run_s=request.run_s).take(steps)
    elif picture_url:
        links = [picture_url, f"{picture_url}?product=2"]
        await Framing(gateway, links, run_s=request.run_s).take(steps)
    else:
        steps.skip("frame", "there is no picture to frame")


def main(  # noqa: PLR0917 - typer makes options of them
    url: Annotated[str, typer.Argument(help="The deployment, such as https://igen.example.")],
    key: Annotated[
        str | None, typer.Option(help="API key. Default: IGEN_API_KEY, else $IGEN_HOME/first-key.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = PROMPT,
    origin_: Annotated[
        str | None, typer.Option("--origin", help="HOST:PORT of this machine from which to serve product pictures.")
    ] = None,
    framing: Annotated[bool, typer.Option("--framing/--no-framing", help="Whether to frame a feed.")] = True,
    run_seconds: Annotated[float, typer.Option(help="Seconds that the run may take.", min=1, max=3600)] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcomes as JSON alone.")] = False,
) -> None:
    """Try a live deployment from end to end; each step with its time, and why it failed."""
    console, errors = Console(), Console(stderr=True)
    interruption = Interruption()
    adopt_environment()

    def shown(outcome: Outcome) -> None:
        if not as_json:
            console.print(f"{MARKS[outcome.state]} {outcome.seconds:7.2f} s  [bold]{outcome.name}[/]: ", end="")
            console.print(outcome.told, markup=False, highlight=False, soft_wrap=True)

    steps = Steps(shown)
    try:
        request = Request(find_access(url, key), prompt, origin_, framing, run_seconds)
        asyncio.run(smoke(request, steps))
        code = int(ExitCode.FAILED if steps.failed else ExitCode.OK)
    except (AccessError, OriginError) as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True, highlight=False)
        code = ExitCode.USAGE
    except KeyboardInterrupt:
        errors.print("Interrupted.")
        code = interruption.code
    if as_json:
        print(json.dumps({"ok": code == ExitCode.OK, "steps": [outcome.as_json() for outcome in steps.outcomes]}))
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
