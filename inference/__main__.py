"""The inference server's process: settings, logs, application, signals.

`python -m inference`
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from inference.app import create_app
from inference.settings import InferenceSettings, check_settings, resolve_key
from models.fetch import parse_allow_hosts
from models.logs import configure_logging, get_logger
from models.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from inference.engine.types import Engine
    from inference.service import Service

log = get_logger(__name__)

BUNDLED = Path(__file__).parent / "checkpoints"
RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache")
KEEP_ALIVE_S = 75  # longer than clients keep an idle connection, so that none is closed under a request on its way
CLOSE_S = 5  # open connections get this long after the drain
EXIT_SETTINGS = 2


def open_engine(settings: InferenceSettings) -> Engine:
    """Load the checkpoint that the settings name. Blocks for as long as that takes.

    Raises:
        CheckpointError: it cannot be loaded.

    """
    # torch takes seconds to import; here it happens on the loader's thread, with /ping answering already
    from inference.engine import factory  # noqa: PLC0415

    return factory.open_engine(
        factory.EngineOptions(
            checkpoint=settings.checkpoint,
            revision=settings.checkpoint_revision,
            search=(BUNDLED, settings.home / "checkpoints", RUNPOD_CACHE),
            device=settings.device,
            attention=settings.attention,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            threads=settings.threads,
            memory_mode=settings.memory_mode,
            checkpoint_memory_mb=settings.checkpoint_memory_mb,
            lora_folder=settings.home / "loras",
            lora_cache_mb=settings.lora_cache_mb,
            compile=settings.compile,
            cuda_graphs=settings.cuda_graphs,
            fused_qkv=settings.fused_qkv,
            vae_precision=settings.vae_precision,
            buckets=settings.bucket_sizes,
            tuning_table=settings.home / "tuning.json",
            compile_cache=settings.home / "cache",
        )
    )


class DrainingServer(uvicorn.Server):
    """uvicorn that keeps serving while jobs drain after the first SIGTERM or SIGINT; the second one stops at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.exit_code = 0
        self.service: Service | None = None
        self._stopping = False
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Remember the loop, which signal handlers need."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, then stop. Second: stop."""
        if self._stopping or self._loop is None:
            self.should_exit = True
            super().handle_exit(sig, frame)
            return
        self._stopping = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def fail(self) -> None:
        """End the process with an error; its reason is in the log already."""
        self.exit_code = 1
        self.should_exit = True

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            if self.service is not None:
                await self.service.drain()
        finally:
            self.should_exit = True


def serve(settings: InferenceSettings, key: str | None, opener: Callable[[InferenceSettings], Engine]) -> int:
    """Run until a signal or a fatal failure; the process's exit code."""
    server: DrainingServer
    app = create_app(settings, key, lambda: opener(settings), on_fatal=lambda: server.fail())  # noqa: PLW0108 - made below
    config = uvicorn.Config(
        app,
        host=settings.bind,
        port=settings.inference_port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CLOSE_S,
    )
    server = DrainingServer(config)
    server.service = app.state.service
    server.run()
    if app.state.service.loading:
        # the loader's thread is deep in native code, which ending the interpreter under it can crash
        sys.stderr.flush()
        os._exit(server.exit_code)
    return server.exit_code


def main(opener: Callable[[InferenceSettings], Engine] = open_engine) -> int:
    """Read settings, set up logs, serve."""
    try:
        settings = load_settings(InferenceSettings)
        check_settings(settings)
        parse_allow_hosts(settings.fetch_allow_hosts)
        key = resolve_key(settings)
    except SettingsError as problem:
        sys.stderr.write(f"igen inference: {problem}\n")
        return EXIT_SETTINGS
    configure_logging(settings, "inference")
    try:
        return serve(settings, key, opener)
    except SettingsError as problem:  # a hook or a file of styles
        sys.stderr.write(f"igen inference: {problem}\n")
        return EXIT_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
