"""Starts services after those that they need, starts again what dies, and stops everything in reverse order."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.supervise.child import Child
from scripts.supervise.child_log import ChildLog, RotatingFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from scripts.supervise.console import Console
    from scripts.supervise.services import Service

WRONG_CONFIGURATION = 2
"""The exit code by which a service says that its settings are wrong: trying again cannot help."""

NOT_STARTED = 127
"""What a shell reports for a program that it cannot start."""


@dataclass(frozen=True)
class Pace:
    """Times in seconds; tests use shorter ones."""

    first_backoff: float = 0.5
    longest_backoff: float = 30.0
    steady: float = 60.0
    """A service that ran this long starts again after the first backoff, whatever happened before."""
    tries: int = 5
    """A service that was never ready and has ended this often ends the supervisor."""
    probe: float = 0.2
    report: float = 10.0


class Supervisor:
    """Runs a registry of services until it is told to stop, or until one of them cannot be started at all."""

    def __init__(
        self,
        services: Sequence[Service],
        logs: Path,
        console: Console,
        *,
        stop_timeout_s: float = 30.0,
        pace: Pace | None = None,
    ) -> None:
        self._services = services
        self._logs = logs
        self._console = console
        self._stop_timeout_s = stop_timeout_s
        self._pace = pace or Pace()
        self._ready = {service.name: asyncio.Event() for service in services}
        self._children: dict[str, Child] = {}
        self._stopping = asyncio.Event()
        self._trouble = ""

    async def run(self, when_ready: Callable[[float], None]) -> int:
        """Run everything; `when_ready` is called once, with the seconds that it took.

        Returns:
            The exit code: 0 after a stop that was asked for, 1 after a service could not be started.

        """
        self._listen_to_signals()
        started = time.monotonic()
        tasks = [asyncio.create_task(self._look_after(service)) for service in self._services]
        for task in tasks:
            task.add_done_callback(self._task_ended)
        if await self._all_ready(started):
            when_ready(time.monotonic() - started)
        await self._stopping.wait()
        await self._stop_children()
        await asyncio.gather(*tasks)
        if self._trouble:
            self._console.line(self._trouble)
        return 1 if self._trouble else 0

    def stop(self) -> None:
        """Begin to stop; asked a second time, kill."""
        if self._stopping.is_set():
            for child in self._children.values():
                child.kill()
        self._stopping.set()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            self._stopping.set()  # a fault of ours: stop the children, then gather() raises it

    async def _all_ready(self, started: float) -> bool:
        reported = started
        while not self._stopping.is_set():
            waiting = [name for name, event in self._ready.items() if not event.is_set()]
            if not waiting:
                break
            now = time.monotonic()
            text = f"starting, {now - started:.0f} s: waiting for {', '.join(waiting)}"
            self._console.moving(text)
            if not self._console.moves and now - reported >= self._pace.report:
                self._console.line(text)
                reported = now
            await self._pause(0.1)
        self._console.moving("")
        return not self._stopping.is_set()

    async def _look_after(self, service: Service) -> None:
        for name in service.needs:
            await self._either(self._ready[name])
        backoff, tries = self._pace.first_backoff, 0
        while not self._stopping.is_set():
            started = time.monotonic()
            code, plain = await self._run_once(service)
            if self._stopping.is_set():
                return
            if service.ready is None and code == 0:
                self._say(service, f"done after {time.monotonic() - started:.1f} s")
                self._ready[service.name].set()
                return
            tries += 1
            if not self._ready[service.name].is_set() and (code == WRONG_CONFIGURATION or tries >= self._pace.tries):
                self._give_up(service, code, tries, plain)
                return
            if time.monotonic() - started >= self._pace.steady:
                backoff = self._pace.first_backoff
            self._say(service, f"{_how(code)}; starts again in {backoff:.1f} s")
            self._show_tail(service, code, plain)
            await self._pause(backoff)
            backoff = min(2 * backoff, self._pace.longest_backoff)

    async def _run_once(self, service: Service) -> tuple[int, list[str]]:
        """One life of a service: its exit code and its last plain lines."""
        log = ChildLog(RotatingFile(self._logs / f"{service.name}.log"), lambda text: self._say(service, text))
        try:
            child = Child(service.command, service.environment, log)
        except OSError as problem:
            return NOT_STARTED, [f"{service.command[0]}: {problem.strerror}"]
        self._children[service.name] = child
        probing = asyncio.create_task(self._announce_ready(service))
        try:
            return await child.wait(), list(log.tail)
        finally:
            probing.cancel()
            del self._children[service.name]

    async def _announce_ready(self, service: Service) -> None:
        if service.ready is None:
            return
        started = time.monotonic()
        while not await service.ready():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(self._pace.probe)
        again = " again" if self._ready[service.name].is_set() else ""
        self._say(service, f"ready{again} after {time.monotonic() - started:.1f} s")
        self._ready[service.name].set()

    def _give_up(self, service: Service, code: int, tries: int, plain: list[str]) -> None:
        self._show_tail(service, code, plain)
        often = "" if code == WRONG_CONFIGURATION else f" {tries} times in a row"
        log = self._logs / f"{service.name}.log"
        self._trouble = f"{service.name} could not be started: {_how(code)}{often}; its log is {log}"
        self._stopping.set()

    def _show_tail(self, service: Service, code: int, plain: list[str]) -> None:
        for line in plain if code > 0 else []:
            self._say(service, f"| {line}")

    async def _stop_children(self) -> None:
        deadline = time.monotonic() + self._stop_timeout_s
        for service in reversed(self._services):
            child = self._children.get(service.name)
            if child:
                self._say(service, "stopping")
                await child.stop(max(1.0, deadline - time.monotonic()))

    async def _pause(self, seconds: float) -> None:
        """Sleep, less when the supervisor is to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _either(self, event: asyncio.Event) -> None:
        """Wait for an event, or for the order to stop."""
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(self._stopping.wait())]
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    def _say(self, service: Service, text: str) -> None:
        self._console.line(f"{service.name:>9}  {text}")


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    names = {member.value: member.name for member in signal.Signals}
    return f"killed by {names.get(-code, f'signal {-code}')}"
