"""The gateway's app: its collaborators are made in the lifespan, and nowhere else."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware

from gateway import generate, handlers, media, public
from gateway.backend import Backend
from gateway.breaker import Breaker
from gateway.forwarder import Forwarder
from gateway.health import Health
from gateway.keys import Keys
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.middleware import BodyLimitMiddleware, HostMiddleware, RequestMiddleware
from gateway.pictures import PictureKeeper
from gateway.requestlog import RequestLogWriter
from gateway.runner import Runner
from gateway.services import Admission, Lifecycle, Services
from gateway.version import VERSION
from models.db import Database
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts
from models.logs import get_logger
from models.migrations import check_schema
from models.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.settings import GatewaySettings

SPARE_CONNECTIONS = 16
"""To the backend, beside one for each waiting caller: recovered rows, cancellations, health."""

log = get_logger(__name__)


def create_app(settings: GatewaySettings) -> FastAPI:
    """An app that has contacted nothing yet; its lifespan opens the database, the store and the pool."""
    metrics = Metrics()
    db = Database(settings.database)
    writer = RequestLogWriter(db, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(db.close)
            await check_schema(db)
            writer.begin()
            stack.push_async_callback(writer.stop)
            services = await _services(settings, db, metrics, stack)
            app.state.services = services
            services.runner.begin()
            stack.push_async_callback(services.runner.stop)
            log.info("gateway_ready", backend=services.backend.url, kind=services.backend.kind.value)
            yield
            services.lifecycle.drain(settings.drain_seconds)
            await services.runner.settle(at_most_s=services.lifecycle.seconds_left)

    app = FastAPI(
        title="IGen gateway",
        version=VERSION,
        summary="Text in, pictures out; every request counted exactly once.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, metrics=metrics, writer=writer),
            Middleware(HostMiddleware, allowed=settings.hosts),
            Middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes),
        ],
    )
    handlers.install(app)
    for module in (public, generate, media):
        app.include_router(module.router)
    return app


async def _services(settings: GatewaySettings, db: Database, metrics: Metrics, stack: AsyncExitStack) -> Services:
    backend = await stack.enter_async_context(
        Backend(
            settings.backend_url,
            settings.backend_secret,
            settings.backend_rules,
            max_answer_bytes=settings.backend_max_answer_bytes,
            max_connections=settings.max_inflight + SPARE_CONNECTIONS,
        )
    )
    policy = FetchPolicy(allow_hosts=parse_allow_hosts(settings.fetch_allow_hosts))
    fetcher = await stack.enter_async_context(SafeFetcher(policy))
    store = open_store(settings.store)
    breaker = Breaker(backend.ping)
    ledger = Ledger(db, lease_seconds=settings.lease_seconds)
    forwarder = Forwarder(
        ledger=ledger,
        backend=backend,
        breaker=breaker,
        keeper=PictureKeeper(store, fetcher, max_bytes=settings.backend_max_answer_bytes),
        metrics=metrics,
        timeout_s=settings.generation_timeout,
    )
    redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
    return Services(
        settings=settings,
        db=db,
        store=store,
        keys=Keys(db),
        ledger=ledger,
        runner=Runner(forwarder, ledger, lease_seconds=settings.lease_seconds),
        backend=backend,
        breaker=breaker,
        admission=Admission(settings.max_inflight, metrics),
        lifecycle=Lifecycle(),
        health=Health(db=db, store=store, backend=backend, breaker=breaker, redis_url=redis_url),
        metrics=metrics,
    )
