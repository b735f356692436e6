"""A job in the engine, seen from the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from inference.engine.types import Previewed, Progressed

if TYPE_CHECKING:
    from inference.engine.types import EngineEvent
    from inference.plan import Plan


class Drawing:
    """A job's events, carried from the engine's thread to the event loop.

    Holds at most the pictures' and the few other events of one job: progress not yet read is replaced by newer, and
    so is a picture's preview.
    """

    def __init__(self, plan: Plan, engine_id: str) -> None:
        self.plan = plan
        self.engine_id = engine_id
        self._loop = asyncio.get_running_loop()
        self._events: deque[EngineEvent] = deque()
        self._arrived = asyncio.Event()

    def listen(self, event: EngineEvent) -> None:
        """The engine's listener; called from its thread."""
        if not self._loop.is_closed():  # closed: the process is ending and nobody is left to tell
            self._loop.call_soon_threadsafe(self._push, event)

    def _push(self, event: EngineEvent) -> None:
        if isinstance(event, Progressed | Previewed):
            self._drop_older(event)
        self._events.append(event)
        self._arrived.set()

    def _drop_older(self, newer: Progressed | Previewed) -> None:
        for position in range(len(self._events) - 1, -1, -1):
            older = self._events[position]
            if not isinstance(older, Progressed | Previewed):
                return  # what it says of progress belongs before that event
            if type(older) is type(newer) and getattr(older, "index", 0) == getattr(newer, "index", 0):
                del self._events[position]
                return

    async def next_event(self) -> EngineEvent:
        """The next event, in the engine's order."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()
