"""Frame a whole feed from the command line, without server or database.

Everything lands in one folder: `pictures/`, the feed that points to them as XML and CSV, `failures.csv`,
`pictures.csv`, and a manifest. Run the same command again to go on after an interruption, or to bring the folder up
to date: pictures that did not change are neither fetched nor composed again.

Exit codes: 0 every product is framed (later uses of an id are skipped); 1 finished, some products failed; 2 the
command line or the frame is wrong; 3 the feed cannot be had or used, nothing was written; 4 this machine cannot go
on (disk, composing process); 130 and 143 interrupted.
"""

from __future__ import annotations

import os
import sqlite3
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compositor.compose.errors import ComposeCode, ComposeError
from compositor.design import Fit  # noqa: TC001 - typer reads it
from compositor.feed.errors import FeedError
from models.fetch import FetchPolicy, parse_allow_hosts
from models.settings import CommonSettings, SettingsError, load_settings
from scripts.calling.environment import adopt_environment
from scripts.calling.interruption import Interruption
from scripts.headless.framing import MachineError
from scripts.headless.options import OptionsError, Overrides, read_assets, read_design
from scripts.headless.run import FeedUnavailableError, Request, frame_feed, output_folder


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    SOME_FAILED = 1
    USAGE = 2
    FEED = 3
    MACHINE = 4
    INTERRUPTED = 130
    TERMINATED = 143


class Kind(StrEnum):
    """File formats."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"


class Layer(StrEnum):
    """Where the frame's picture lies."""

    OVER = "over"
    UNDER = "under"


class FeedMode(StrEnum):
    """What the output feed does with the pictures' links."""

    REPLACE = "replace"
    ADDITIONAL = "additional"


def fetch_policy(allow_hosts: list[str]) -> FetchPolicy:
    """The policy with the hosts of the command line and of the environment.

    Raises:
        OptionsError: an entry is not a host or host:port.

    """
    try:
        given = [load_settings(CommonSettings).fetch_allow_hosts, *allow_hosts]
        return FetchPolicy(allow_hosts=parse_allow_hosts(",".join(filter(None, given))))
    except SettingsError as error:
        raise OptionsError(f"--allow-host: {error}") from None


def feed_of(text: str) -> Path | str:
    """A feed's address, or its file.

    Raises:
        OptionsError: no such file.

    """
    if text.lower().startswith(("http://", "https://")):
        return text
    if not Path(text).is_file():
        raise OptionsError(f"FEED: there is no file {text}, and it is no http:// or https:// address")
    return Path(text)


def attempt(request: Request, console: Console, errors: Console) -> ExitCode:
    """Do the run; whatever ends it early is said in one line."""
    try:
        with output_folder(request):
            counts = frame_feed(request, console)
    except OptionsError as error:
        code, message = ExitCode.USAGE, str(error)
    except ComposeError as error:  # a product's own never comes here
        usage = error.code != ComposeCode.COMPOSER_UNAVAILABLE
        code, message = ExitCode.USAGE if usage else ExitCode.MACHINE, error.message
        message = f"--frame: {message}" if usage else message
    except (FeedError, FeedUnavailableError) as error:
        code, message = ExitCode.FEED, f"The feed cannot be used. {error.message}"
    except (MachineError, OSError, sqlite3.Error) as error:
        code, message = ExitCode.MACHINE, f"{error} Run the same command again to go on."
    else:
        return ExitCode.SOME_FAILED if counts.failed else ExitCode.OK
    errors.print(message, style="red", markup=False, soft_wrap=True)
    return code


def main(  # noqa: PLR0917 - typer makes options of them
    feed: Annotated[str, typer.Argument(help="The product feed: a file, or an http(s) address.")],
    frame: Annotated[Path, typer.Option(help="The frame: a PNG, JPEG or WebP picture.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for everything that comes out.", file_okay=False)],
    box: Annotated[
        str | None, typer.Option(help="Where the product goes: x,y,width,height in the frame's pixels.")
    ] = None,
    design: Annotated[
        Path | None, typer.Option(help="A design as JSON; the options stand above it.", exists=True, dir_okay=False)
    ] = None,
    fit: Annotated[Fit | None, typer.Option(help="How the product fills its box.")] = None,
    layer: Annotated[Layer | None, typer.Option(help="The frame's place; by its transparency if not given.")] = None,
    output_format: Annotated[Kind | None, typer.Option("--format", help="The pictures' file format.")] = None,
    quality: Annotated[int | None, typer.Option(help="Quality of JPEG and WebP, 1 to 100.")] = None,
    asset: Annotated[list[str] | None, typer.Option(help="ID=PATH of a font or badge in the design.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that compose; 0 is one a core.", min=0, max=64)] = 0,
    per_host: Annotated[int, typer.Option(help="Pictures fetched from one host at a time.", min=1, max=64)] = 8,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A private host (or host:port) that addresses may name.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Where pictures/ will be served; the feed's links begin so. Default: file://.")
    ] = None,
    feed_mode: Annotated[
        FeedMode, typer.Option(help="Replace image_link, or add additional_image_link.")
    ] = FeedMode.REPLACE,
) -> None:
    """Frame every product of a feed. Run it again to go on after an interruption, or to update."""
    console, errors = Console(), Console(stderr=True)
    interruption = Interruption()
    adopt_environment()
    try:
        whole_design = read_design(design, Overrides(box, fit, layer, output_format, quality))
        request = Request(
            feed=feed_of(feed),
            frame=frame,
            out=out.resolve(),  # the composing process has a working folder of its own
            design=whole_design,
            assets=read_assets(asset or [], whole_design),
            workers=workers or len(os.sched_getaffinity(0)),
            per_host=per_host,
            policy=fetch_policy(allow_host or []),
            mode="additional" if feed_mode is FeedMode.ADDITIONAL else "replace",
            base_url=base_url,
        )
        code = attempt(request, console, errors)
    except OptionsError as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True)
        code = ExitCode.USAGE
    except KeyboardInterrupt:
        errors.print("Interrupted. Run the same command again to go on.")
        code = ExitCode(interruption.code)
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
