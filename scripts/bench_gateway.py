"""What one core of gateway carries: scripts/bench_gateway.

A real gateway over a fresh database and a local store, before a stand-in that draws in no time. Clients, stand-in and
gateway share this machine, so requests a second are a lower bound; the gateway's own processor time for each request
is measured apart from theirs and is what a capacity is worked out from.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scripts.calling.access import Access
from scripts.calling.gateway import Gateway, Reply
from scripts.loading.load import measure
from scripts.loading.process import gateway
from scripts.loading.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scripts.loading.load import Measured
    from scripts.loading.process import Running

OK = 200


class AnswerError(Exception):
    """The gateway answered a request of the benchmark otherwise than it must."""


class Workload:
    """The kinds of requests. `prepare` makes the generation that most of them ask for."""

    def __init__(self, http: Gateway) -> None:
        self._http = http
        self._numbers = itertools.count()
        self._first: dict[str, Any] = {}

    async def prepare(self) -> None:
        """One picture."""
        self._first = (await self._generate("bench-first")).body

    @property
    def kinds(self) -> dict[str, Callable[[int], Awaitable[Reply]]]:
        """Requests by name."""
        picture = self._http.path_of(str(self._first["image_url"]))
        return {
            "generate": lambda _: self._generate(f"bench-{next(self._numbers)}"),
            "generate, replayed": lambda _: self._generate("bench-first"),
            "status": lambda _: self._ask("GET", f"/api/generations/{self._first['id']}"),
            "picture": lambda _: self._ask("GET", picture),
            "healthz": lambda _: self._ask("GET", "/healthz"),
        }

    async def _generate(self, key: str) -> Reply:
        return await self._ask(
            "POST", "/api/generate/", body={"prompt": "a benchmark", "seed": 1}, headers={"Idempotency-Key": key}
        )

    async def _ask(self, method: str, path: str, **options: Any) -> Reply:
        reply = await self._http.request(method, path, **options)
        if reply.status != OK:
            raise AnswerError(f"{method} {path}: {reply.status} {reply.reason}")
        return reply


async def bench(running: Running, *, clients: int, requests: int) -> list[Measured]:
    """Every kind, after a warm-up of a tenth."""
    found = []
    async with Gateway(Access(running.url, running.key), connections=clients) as http:
        workload = Workload(http)
        await workload.prepare()
        for name, ask in workload.kinds.items():
            await measure(name, running, ask, clients=clients, requests=max(10, requests // 10))
            found.append(await measure(name, running, ask, clients=clients, requests=requests))
    return found


async def run(*, clients: int, requests: int, picture_kb: int, database_url: str | None) -> dict[str, Any]:
    """All of it; the outcome as a document."""
    standin = StandIn(picture_kb * 1000)
    with tempfile.TemporaryDirectory(prefix="igen-bench-") as folder:
        async with standin.served() as backend_url:
            with gateway(Path(folder), backend_url, database_url) as running:
                found = await bench(running, clients=clients, requests=requests)
                memory = running.rss_mb()
    return {
        "clients": clients,
        "picture_bytes": standin.picture_bytes,
        "database": "postgresql" if database_url else "sqlite",
        "rss_mb": round(memory, 1),
        "kinds": [{**asdict(each), "per_core": each.per_core} for each in found],
    }


def show(console: Console, told: dict[str, Any]) -> None:
    """The outcome as a table."""
    title = f"{told['clients']} clients, {told['database']}, pictures of {told['picture_bytes'] / 1e6:.2f} MB"
    table = Table("request", "answered/s", "gateway CPU ms", "one core carries/s", "p50 ms", "p99 ms", title=title)
    for kind in told["kinds"]:
        numbers = (kind["per_second"], kind["cpu_ms"], kind["per_core"], kind["p50_ms"], kind["p99_ms"])
        table.add_row(kind["name"], *(f"{number:.4g}" for number in numbers))
    console.print(table)
    console.print(f"gateway's memory: {told['rss_mb']} MB", highlight=False)


def main(
    clients: Annotated[int, typer.Option(help="Clients at once.", min=1, max=64)] = 16,
    requests: Annotated[int, typer.Option(help="Requests of each kind.", min=20)] = 1000,
    picture_kb: Annotated[int, typer.Option(help="Size of a picture in kB.", min=10, max=3000)] = 1500,
    database_url: Annotated[
        str | None, typer.Option(help="A fresh PostgreSQL database. Default: SQLite in a temporary folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """What one core of gateway carries."""
    told = asyncio.run(run(clients=clients, requests=requests, picture_kb=picture_kb, database_url=database_url))
    if as_json:
        print(json.dumps(told))
    else:
        show(Console(), told)


if __name__ == "__main__":
    typer.run(main)
