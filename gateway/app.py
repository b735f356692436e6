"""The gateway's app: its collaborators are made in the lifespan, and nowhere else."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware

from compositor.feed.errors import FeedLimits
from compositor.progress import connect as progress_redis
from gateway import (
    archives,
    assets,
    datatables,
    feeds,
    frames,
    generate,
    generationevents,
    handlers,
    media,
    outputs,
    preview,
    progress,
    public,
    runs,
    verifying,
    webhooks,
)
from gateway.backend import Backend
from gateway.bodies import BodyRoom
from gateway.breaker import Breaker
from gateway.composer import child_composer
from gateway.forwarder import Forwarder
from gateway.framebodies import FORM_SPARE_BYTES, PICTURE_MAX_BYTES
from gateway.generationhub import GenerationHub
from gateway.health import Health
from gateway.housekeeping import Housekeeper
from gateway.inputs import InputKeeper
from gateway.keys import Keys
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.middleware import JSON, BodyLimitMiddleware, HostMiddleware, RequestMiddleware, UploadLimit
from gateway.multipart import remove_stale
from gateway.orphans import Orphans
from gateway.pictures import PictureKeeper
from gateway.previewer import Previewer
from gateway.progresshub import ProgressHub
from gateway.republishing import Republisher
from gateway.requestlog import RequestLogWriter
from gateway.retention import Retention
from gateway.runner import Runner
from gateway.services import Admission, Lifecycle, OwnerLimit, Services
from gateway.sweeper import Sweeper
from gateway.tickets import LocalTickets, RedisTickets
from models.db import Database
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts
from models.logs import get_logger
from models.migrations import check_schema
from models.store import open_store
from models.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.composer import Composer
    from gateway.settings import GatewaySettings

SPARE_CONNECTIONS = 16
"""To the backend, beside one for each waiting caller and one for whoever watches: recovered rows, health."""

LONG_BODIES = 8
"""Requests with pictures in them that are read at once; each is held a few times over while it is."""

log = get_logger(__name__)


def create_app(settings: GatewaySettings, *, composer: Composer | None = None) -> FastAPI:
    """An app that has contacted nothing yet; its lifespan opens the database, the store and the pool.

    `composer` stands in for the composing children, which start with the first upload or preview.
    """
    metrics = Metrics()
    db = Database(settings.database)
    writer = RequestLogWriter(db, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(db.close)
            await check_schema(db)
            await asyncio.to_thread(remove_stale, settings.uploads)
            writer.begin()
            stack.push_async_callback(writer.stop)
            services = await _services(settings, db, metrics, composer, stack)
            app.state.services = services
            services.runner.begin()
            stack.push_async_callback(services.runner.stop)
            services.sweeper.begin()
            stack.push_async_callback(services.sweeper.stop)
            services.housekeeper.begin()
            stack.push_async_callback(services.housekeeper.stop)
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
            Middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, uploads=_upload_limits(settings)),
        ],
    )
    handlers.install(app)
    # `outputs.zip` before `outputs/{position}`: the first that fits an address serves it
    drawn = (public, generate, generationevents, verifying, media)
    framed = (frames, webhooks, assets, preview, runs, archives, outputs, datatables, feeds)
    for module in (*drawn, *framed):
        app.include_router(module.router)
    app.include_router(progress.router)
    return app


def _upload_limits(settings: GatewaySettings) -> tuple[UploadLimit, ...]:
    """Bodies as a whole; each file in them has a limit of its own."""
    frame = PICTURE_MAX_BYTES + settings.feed_max_bytes + FORM_SPARE_BYTES
    generate = re.compile(r"/api/(?:generate|verify)/?")
    why = "RunPod takes no more; give a larger picture by its address"
    return (
        UploadLimit(frozenset({"POST"}), generate, settings.max_generate_bytes, JSON, why),
        UploadLimit(frozenset({"POST", "PATCH"}), re.compile(r"/api/frames(/[0-9]+)?/?"), frame),
        UploadLimit(frozenset({"POST"}), re.compile(r"/api/assets/?"), PICTURE_MAX_BYTES + FORM_SPARE_BYTES),
    )


async def _services(
    settings: GatewaySettings,
    db: Database,
    metrics: Metrics,
    composer: Composer | None,
    stack: AsyncExitStack,
) -> Services:
    backend = await stack.enter_async_context(
        Backend(
            settings.backend_url,
            settings.backend_secret,
            settings.backend_rules,
            max_answer_bytes=settings.backend_max_answer_bytes,
            max_connections=2 * settings.max_inflight + SPARE_CONNECTIONS,
        )
    )
    policy = FetchPolicy(allow_hosts=parse_allow_hosts(settings.fetch_allow_hosts))
    fetcher = await stack.enter_async_context(SafeFetcher(policy))
    store = open_store(settings.store)
    if composer is None:
        composer = await stack.enter_async_context(child_composer(settings.preview_processes))
    breaker = Breaker(backend.ping)
    ledger = Ledger(db, lease_seconds=settings.lease_seconds)
    inputs = InputKeeper(store)
    forwarder = Forwarder(
        ledger=ledger,
        backend=backend,
        breaker=breaker,
        inputs=inputs,
        keeper=PictureKeeper(store, fetcher, max_bytes=settings.backend_max_answer_bytes),
        metrics=metrics,
        timeout_s=settings.generation_timeout,
    )
    redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
    redis = None
    if redis_url:
        redis = progress_redis(redis_url)
        stack.push_async_callback(redis.aclose)
    hub = ProgressHub(db, redis)
    stack.push_async_callback(hub.stop)
    generations = GenerationHub(backend, ledger, redis, polls=settings.max_inflight)
    stack.push_async_callback(generations.stop)
    limits = FeedLimits(max_bytes=settings.feed_max_bytes)
    base = settings.public_base
    republisher = Republisher(db, store, folder=settings.feeds, public_base=base, limits=limits)
    stack.push_async_callback(republisher.stop)
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
        bodies=BodyRoom(LONG_BODIES, long_bytes=settings.max_body_bytes),
        inputs=inputs,
        zips=OwnerLimit(settings.max_zips, "archives"),
        uploads=OwnerLimit(settings.max_uploads, "uploads"),
        lifecycle=Lifecycle(),
        health=Health(db=db, store=store, backend=backend, breaker=breaker, redis_url=redis_url),
        metrics=metrics,
        fetch_policy=policy,
        fetcher=fetcher,
        composer=composer,
        republisher=republisher,
        sweeper=Sweeper(db, store, republisher),
        housekeeper=Housekeeper(
            db,
            Retention(db, store, keep_runs=settings.keep_runs, keep_days=settings.keep_days),
            Orphans(db, store),
        ),
        previewer=Previewer(
            db=db,
            store=store,
            fetcher=fetcher,
            composer=composer,
            folder=settings.previews,
            feed_max_bytes=settings.feed_max_bytes,
            source_max_bytes=settings.source_max_bytes,
        ),
        hub=hub,
        generations=generations,
        tickets=LocalTickets() if redis is None else RedisTickets(redis),
    )
