"""Creates or updates a RunPod serverless endpoint and its template: scripts/deploy_runpod; see docs/deploy."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scripts.deploying.api import API, RunpodApi
from scripts.deploying.config import (
    IMAGE_CUDA,
    SECRET_NAME,
    check_image,
    deployment,
    parse_env,
    parse_model,
    read_toml,
)
from scripts.deploying.deploy import Deployer
from scripts.deploying.errors import DeployError
from scripts.deploying.rehearsal import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.deploying.config import Deployment
    from scripts.deploying.deploy import Deployed

ROOT = Path(__file__).resolve().parents[1]
KEY = "RUNPOD_API_KEY"
FAILED = 1
USAGE = 2


def main(  # noqa: PLR0917 - typer makes options of them
    config: Annotated[Path, typer.Option(help="The settings; every option below wins over them.")] = ROOT
    / "runpod.toml",
    name: Annotated[str | None, typer.Option(help="Name of template and endpoint, by which they are found.")] = None,
    image: Annotated[str | None, typer.Option(help="The image, registry and tag included.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="A GPU type or pool; may be given several times.")] = None,
    gpu_count: Annotated[int | None, typer.Option(min=1, help="GPUs of one worker.")] = None,
    min_cuda: Annotated[
        str | None, typer.Option(help=f"Oldest CUDA version of a host's driver, {IMAGE_CUDA} without it; '' for any.")
    ] = None,
    container_disk: Annotated[int | None, typer.Option(min=1, help="Disk of the container in GB.")] = None,
    workers_min: Annotated[int | None, typer.Option(min=0, help="Workers that always run (and always cost).")] = None,
    workers_max: Annotated[int | None, typer.Option(min=0, help="Most workers.")] = None,
    idle_timeout: Annotated[
        int | None, typer.Option(min=1, max=3600, help="Seconds that an idle worker waits for more.")
    ] = None,
    execution_timeout: Annotated[int | None, typer.Option(help="Seconds that one request may take.")] = None,
    queue_delay: Annotated[
        float | None, typer.Option(min=0.5, help="Seconds in the queue after which a worker is added.")
    ] = None,
    requests_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Load balancing: requests at once that a worker is meant for.")
    ] = None,
    flashboot: Annotated[bool | None, typer.Option(help="RunPod's FlashBoot.")] = None,
    load_balancing: Annotated[
        bool, typer.Option("--load-balancing", help="An HTTP endpoint without RunPod's queue.")
    ] = False,
    volume: Annotated[str | None, typer.Option(help="A network volume, by name or id.")] = None,
    data_center: Annotated[list[str] | None, typer.Option(help="A data center; may be given several times.")] = None,
    model: Annotated[str | None, typer.Option(help="The cached model: org/name or org/name:commit.")] = None,
    registry: Annotated[str | None, typer.Option(help="RunPod's id of a private registry's credentials.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="A variable of the workers: NAME=VALUE.")] = None,
    env_from: Annotated[
        list[str] | None, typer.Option(help="A variable whose value is taken from here and never shown.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the calls, change nothing.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the endpoint and its template.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
    api: Annotated[str, typer.Option(help="Address of RunPod's API.")] = API,
) -> None:
    """Make the RunPod account hold one template and one endpoint as runpod.toml and the options say.

    Run it again to update. The account's key is read from RUNPOD_API_KEY.
    """
    try:
        toml = read_toml(config)
        cached = parse_model(model) if model else None
        variables = toml.project.env_vars | (cached.variables if cached else {})
        variables |= parse_env(env or [], env_from or [], os.environ)
        wanted = deployment(
            toml,
            name=name,
            image=image,
            gpu_types=tuple(gpu) if gpu else None,
            gpu_count=gpu_count,
            min_cuda=min_cuda,
            container_disk_gb=container_disk,
            workers_min=workers_min,
            workers_max=workers_max,
            idle_timeout_s=idle_timeout,
            execution_timeout_s=execution_timeout,
            queue_delay_s=queue_delay,
            requests_per_worker=requests_per_worker,
            flashboot=flashboot,
            load_balancing=load_balancing,
            volume=volume,
            data_centers=tuple(data_center) if data_center else None,
            model=cached,
            registry=registry,
            env=variables,
            hidden=frozenset(env_from or []),
        )
        key = account_key(needed=not dry_run)
        if not (dry_run or delete):
            check_image(wanted.image)
    except DeployError as problem:
        complain(problem)
        raise typer.Exit(USAGE) from None
    if delete and not (yes or dry_run):
        typer.confirm(f"Delete endpoint and template '{wanted.name}'? Jobs in its queue are lost", abort=True)
    for remark in () if delete else wanted.remarks:
        sys.stderr.write(f"note: {remark}\n")
    try:
        asyncio.run(run(wanted, key, api, delete=delete, dry_run=dry_run))
    except DeployError as problem:
        complain(problem)
        raise typer.Exit(FAILED) from None


def account_key(*, needed: bool) -> str | None:
    """RunPod's key.

    Raises:
        DeployError: it is needed and not set.

    """
    key = os.environ.get(KEY, "").strip()
    if key and not key.isascii():
        raise DeployError(f"{KEY} holds characters that no key has.")
    if needed and not key:
        raise DeployError(f"{KEY} is not set: export the account's key (or look first, with --dry-run).")
    return key or None


def complain(problem: DeployError) -> None:
    """One line on standard error."""
    sys.stderr.write(f"scripts/deploy_runpod: {problem}\n")


async def run(wanted: Deployment, key: str | None, base: str, *, delete: bool, dry_run: bool) -> None:
    """Deploy or delete, for real or as a rehearsal.

    Raises:
        DeployError: in words for the operator.

    """
    if key is None:
        await act(Deployer(rehearsal(None, wanted, base), wanted, note(dry_run=True)), wanted, delete=delete)
        print("Nothing was sent. Without a key this account was taken for an empty one.")
        return
    async with RunpodApi(key, base, wanted.secrets) as real:
        api = rehearsal(real, wanted, base) if dry_run else real
        await act(Deployer(api, wanted, note(dry_run=dry_run)), wanted, delete=delete)
    if dry_run:
        print("Nothing was changed.")


def rehearsal(real: RunpodApi | None, wanted: Deployment, base: str) -> Rehearsal:
    """The API of a dry run."""
    secret = {name for name in wanted.environment if SECRET_NAME.search(name)} | wanted.hidden
    shown = {name for name, value in wanted.environment.items() if value not in wanted.secrets}
    return Rehearsal(real, base, wanted.secrets, secret - shown, print)


def note(*, dry_run: bool) -> Callable[[str], None]:
    """Prints what was done, or what would have been."""
    return (lambda text: print(f"-> {text}")) if dry_run else print


async def act(deployer: Deployer, wanted: Deployment, *, delete: bool) -> None:
    """Do it and say what came of it.

    Raises:
        DeployError: in words for the operator.

    """
    if delete:
        if not await deployer.delete():
            print(f"There is neither an endpoint nor a template '{wanted.name}'.")
        return
    done = await deployer.deploy()
    if not done.changed:
        print("Everything is as wanted; nothing was changed.")
    print(backend(wanted, done))


def backend(wanted: Deployment, done: Deployed) -> str:
    """The gateway's settings for the endpoint."""
    if not wanted.load_balancing:
        url, kind = f"https://api.runpod.ai/v2/{done.endpoint_id}", "runpod"
    else:
        base = done.request_urls.get("base", f"https://{done.endpoint_id}.api.runpod.ai")
        url, kind = f"{base}/v2/{wanted.environment.get('IGEN_ENDPOINT', 'igen')}", "selfhosted"
    lines = (f"IGEN_BACKEND_URL={url}", f"IGEN_BACKEND_KIND={kind}", "IGEN_BACKEND_KEY=<a RunPod key>")
    return "\n".join(("The gateway's settings:", *lines))


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
