"""The collaborators of one gateway process, made once by the app's lifespan."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import BusyError, OwnerLimitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import HTTPConnection

    from gateway.backend import Backend
    from gateway.bodies import BodyRoom
    from gateway.breaker import Breaker
    from gateway.composer import Composer
    from gateway.generationhub import GenerationHub
    from gateway.health import Health
    from gateway.housekeeping import Housekeeper
    from gateway.inputs import InputKeeper
    from gateway.keys import Keys
    from gateway.ledger import Ledger
    from gateway.metrics import Metrics
    from gateway.previewer import Previewer
    from gateway.progresshub import ProgressHub
    from gateway.republishing import Republisher
    from gateway.runner import Runner
    from gateway.settings import GatewaySettings
    from gateway.sweeper import Sweeper
    from gateway.tickets import Tickets
    from models.db import Database
    from models.fetch import FetchPolicy, SafeFetcher
    from models.store import ObjectStore

BUSY_RETRY_S = 5


class Lifecycle:
    """Whether this process is on its way out, and whether its callers' time is over too."""

    def __init__(self) -> None:
        self.draining = False
        self.over = asyncio.Event()
        self._ends_at = 0.0

    def drain(self, seconds: float) -> None:
        """Take no new jobs from now on; after `seconds` send the waiting callers away. To be called in the loop."""
        if not self.draining:
            self.draining = True
            loop = asyncio.get_running_loop()
            self._ends_at = loop.time() + seconds
            loop.call_at(self._ends_at, self.over.set)

    @property
    def seconds_left(self) -> float:
        """Until the callers' time is over."""
        return max(self._ends_at - asyncio.get_running_loop().time(), 0)


class Admission:
    """How many callers may wait for pictures at once."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._waiting = 0
        self._gauge = metrics.waiting

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Take one place until the end of the block.

        Raises:
            BusyError: all are taken.

        """
        if self._waiting >= self._limit:
            raise BusyError(retry_after_s=BUSY_RETRY_S)
        self._waiting += 1
        self._gauge.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= 1
            self._gauge.set(self._waiting)


class OwnerLimit:
    """How many things of a kind each owner may have under way in this process."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def enter(self, owner_id: str) -> Iterator[None]:
        """Take one of the owner's places until the end of the block; errors as `take`."""
        self.take(owner_id)
        try:
            yield
        finally:
            self.give_back(owner_id)

    def take(self, owner_id: str) -> None:
        """Take one of the owner's places, to be given back.

        Raises:
            OwnerLimitError: all are taken.

        """
        if self._under_way[owner_id] >= self._limit:
            raise OwnerLimitError(
                f"You have {self._limit} {self._what} under way already. Try again when one has ended.",
                retry_after_s=BUSY_RETRY_S,
            )
        self._under_way[owner_id] += 1

    def give_back(self, owner_id: str) -> None:
        """Give a place back."""
        self._under_way[owner_id] -= 1
        if not self._under_way[owner_id]:
            del self._under_way[owner_id]


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers need. Nothing here outlives the process; rows and objects do."""

    settings: GatewaySettings
    db: Database
    store: ObjectStore
    keys: Keys
    ledger: Ledger
    runner: Runner
    backend: Backend
    breaker: Breaker
    admission: Admission
    bodies: BodyRoom
    inputs: InputKeeper
    zips: OwnerLimit
    uploads: OwnerLimit
    lifecycle: Lifecycle
    health: Health
    metrics: Metrics
    fetch_policy: FetchPolicy
    fetcher: SafeFetcher
    composer: Composer
    republisher: Republisher
    sweeper: Sweeper
    housekeeper: Housekeeper
    previewer: Previewer
    hub: ProgressHub
    generations: GenerationHub
    tickets: Tickets


def services_of(request: HTTPConnection) -> Services:
    """The services of the app that serves a request."""
    services: Services = request.app.state.services
    return services
