"""The HTTP server of a process: binds before anything starts, drains when told to stop."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from gateway.app import create_app

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from gateway.settings import GatewaySettings

BACKLOG = 2048
WS_MAX_BYTES = 4096
WS_MAX_QUEUE = 4
"""Clients of the progress socket have nothing to say."""
REFUSED = "ASGI callable returned without completing handshake."
AFTER_DRAIN_S = 5
"""For the last answers to be written, after the callers' time is over."""


class GatewayServer(uvicorn.Server):
    """uvicorn's server, which marks the app as draining before it stops listening."""

    def __init__(self, settings: GatewaySettings, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # our own configuration takes uvicorn's records
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody's word for an address is taken
                lifespan="on",
                ws="websockets-sansio",
                ws_max_size=WS_MAX_BYTES,  # a longer message closes the socket with 1009
                ws_max_queue=WS_MAX_QUEUE,
                ws_per_message_deflate=False,  # no compressed bombs; our messages are small
                timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + AFTER_DRAIN_S,
            )
        )
        logging.getLogger("uvicorn.error").addFilter(_is_no_refusal)
        self._app = app
        self._drain_seconds = settings.drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop, for signals to reach it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """First signal: drain and stop. Ctrl-C again: stop at once. (uvicorn's own raises the signal again later.)"""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        services = getattr(self._app.state, "services", None)
        if services is not None:
            services.lifecycle.drain(self._drain_seconds)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """Uvicorn takes a WebSocket that was refused with an answer for an app's fault; our own line tells of it."""
    return record.msg != REFUSED


def bind(settings: GatewaySettings) -> socket.socket:
    """The listening socket.

    Raises:
        OSError: the port is taken or the address is not this machine's.

    """
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    return socket.create_server((settings.bind, settings.port), family=family, backlog=BACKLOG)


async def serve(settings: GatewaySettings, listening: socket.socket) -> bool:
    """Serve until a signal. False when the app could not start."""
    server = GatewayServer(settings, create_app(settings))
    await server.serve(sockets=[listening])
    return server.started
