"""Draw one prompt, or a file of them, through a gateway; each is paid for once, however often this is killed.

Everything lands in one folder: the pictures, `pictures.csv`, `failures.csv`, `failures.json` and a manifest. Run the
same command again to go on after an interruption: what is there is not asked for, what was sent is asked for under
the same Idempotency-Key, so that the gateway answers with the picture that it has. Rows may be added to the file.

Exit codes: 0 every prompt has its picture; 1 finished, some failed; 2 the command line or rows of the file are wrong,
nothing was sent; 3 the gateway does not answer or refuses the key; 4 this machine cannot go on (disk); 130 and 143
interrupted.
"""

from __future__ import annotations

import sqlite3
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scripts.calling.access import AccessError, find_access
from scripts.calling.environment import adopt_environment
from scripts.calling.folder import FolderError, disk_words
from scripts.calling.interruption import Interruption
from scripts.generating.drawing import DiskError, GatewayRefusedError
from scripts.generating.prompts import PromptsError, read_settings
from scripts.generating.run import ElsewhereError, Request, generate

GO_ON = "Run the same command again to go on."


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    SOME_FAILED = 1
    USAGE = 2
    GATEWAY = 3
    MACHINE = 4


def attempt(request: Request, console: Console, errors: Console) -> int:
    """Do the run; whatever ends it early is said in a few words."""
    try:
        counts = generate(request, console)
    except (PromptsError, FolderError, ElsewhereError) as error:
        code, message = ExitCode.USAGE, str(error)
    except GatewayRefusedError as error:
        code, message = ExitCode.GATEWAY, f"{error} {GO_ON}"
    except DiskError as error:
        code, message = ExitCode.MACHINE, str(error)
    except OSError as error:
        code, message = ExitCode.MACHINE, disk_words(error, request.out)
    except sqlite3.Error as error:
        code, message = ExitCode.MACHINE, f"{request.out / 'manifest.db'}: {error}. {GO_ON}"
    else:
        return ExitCode.SOME_FAILED if counts.failed else ExitCode.OK
    errors.print(message, style="red", markup=False, soft_wrap=True, highlight=False)
    return code


def main(  # noqa: PLR0917 - typer makes options of them
    prompt: Annotated[str | None, typer.Argument(help="One prompt.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Many: a .csv with a header, or a .jsonl; fields of a request are its columns or keys."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that comes out.", file_okay=False)] = Path(
        "generated"
    ),
    url: Annotated[str | None, typer.Option(help="The gateway. Default: http://127.0.0.1:$IGEN_PORT.")] = None,
    key: Annotated[
        str | None, typer.Option(help="API key. Default: IGEN_API_KEY, else $IGEN_HOME/first-key.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of a field, for all prompts that do not say otherwise."),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.", min=1, max=256)] = 8,
    patience: Annotated[
        float, typer.Option(help="Seconds without any progress after which to give up.", min=1, max=86_400)
    ] = 600.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed ones again, as new requests.")
    ] = False,
    same_gateway: Annotated[
        bool, typer.Option("--same-gateway", help="The address or key changed; gateway and owner did not.")
    ] = False,
) -> None:
    """Draw prompts through a gateway. Run it again to go on after an interruption; nothing is paid for twice."""
    console, errors = Console(), Console(stderr=True)
    interruption = Interruption()
    adopt_environment()
    if (prompt is None) == (file is None):
        errors.print("Give either a PROMPT or --file.", style="red")
        raise typer.Exit(ExitCode.USAGE)
    try:
        request = Request(
            access=find_access(url, key),
            out=out,
            prompt=prompt,
            file=file,
            defaults=read_settings(set_ or []),
            concurrency=concurrency,
            patience_s=patience,
            retry_failed=retry_failed,
            same_gateway=same_gateway,
        )
        code = attempt(request, console, errors)
    except (PromptsError, AccessError) as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True, highlight=False)
        code = ExitCode.USAGE
    except KeyboardInterrupt:
        errors.print(f"Interrupted. What was sent is drawn at the gateway all the same. {GO_ON}", soft_wrap=True)
        code = interruption.code
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
