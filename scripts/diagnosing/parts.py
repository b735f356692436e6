"""Every check in its order. A part that cannot be looked at says so and stops no other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.settings import BackendKind
from scripts.diagnosing import backend, machine, objects, outside, queues, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from scripts.diagnosing.finding import Finding


async def findings() -> AsyncIterator[Finding]:
    """Look at everything that the environment names."""
    loaded, told = machine.load_all()
    for finding in told:
        yield finding
    if loaded is None:
        return
    others = list(machine.check_owner(loaded.gateway.home, os.geteuid()))
    for finding in others:
        yield finding
    if others:
        return
    runs = await outside.gateway_answers(loaded.gateway)
    draws = loaded.supervisor.draws_here and await outside.generator_answers(loaded.supervisor)
    for part in _parts(loaded, runs=runs, draws=draws):
        async for finding in part:
            yield finding


def _parts(loaded: machine.Loaded, *, runs: bool, draws: bool) -> Iterator[AsyncIterator[Finding]]:
    """The checks. `runs` is whether the gateway answers, so that what it needs ought to be there; `draws`, whether an
    inference server does that is this machine's own.
    """
    settings, home = loaded.gateway, loaded.gateway.home
    configured = settings.redis_url.get_secret_value() if settings.redis_url else None
    yield _each(machine.check_home(home))
    yield _each([machine.check_first_key(home)])
    yield rows.check_database(settings.database, home, runs=runs)
    yield _each(queues.check_redis(queues.redis_address(configured, home), runs=runs))
    yield objects.check_store(settings.store)
    yield backend.check_backend(backend_of(loaded), runs=runs)
    yield backend.check_gpu(loaded)
    yield _each(outside.check_composing())
    yield _each(machine.check_free_ports(loaded, gateway_runs=runs, backend_runs=draws))
    yield outside.check_public_address(settings, runs=runs)


async def _each(findings: Iterable[Finding]) -> AsyncIterator[Finding]:
    for finding in findings:
        yield finding


def backend_of(loaded: machine.Loaded) -> backend.Target:
    """The backend that the gateway uses: under scripts/up its own, unless one is named."""
    settings = loaded.gateway
    named = bool(os.environ.get("IGEN_BACKEND_URL"))
    url = settings.backend_url if named else loaded.supervisor.local_backend_url
    ours = loaded.supervisor.draws_here and settings.backend_rules is BackendKind.SELFHOSTED
    key = settings.backend_secret or (loaded.supervisor.inference_key if ours else "")
    return backend.Target(url, key, settings.backend_rules, ours)
