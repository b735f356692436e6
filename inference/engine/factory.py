"""Opens the engine: load, choose limits for the device, draw a warm-up picture."""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inference.engine.checkpoint import load_checkpoint
from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.types import CheckpointError, Completed, EngineJob, Failed, PictureSpec

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.types import EngineEvent

log = logging.getLogger(__name__)

CUDA_BUCKETS = (1, 2, 4, 8, 16, 32)
WARM_UP_STEPS = 2


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an operator chooses; see the settings of the inference server."""

    checkpoint: str = "tiny"
    revision: str | None = None
    search: tuple[Path, ...] = ()
    device: str = "auto"
    attention: str = "auto"
    max_batch: int = 8
    max_waiting: int = 64
    threads: int | None = None


def open_engine(options: EngineOptions) -> BatchingEngine:
    """Load a checkpoint and return an engine that has drawn a picture. Blocks for as long as that takes.

    Raises:
        CheckpointError: it cannot be loaded, or its first picture fails.

    """
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.monotonic()
    checkpoint = load_checkpoint(
        options.checkpoint, options.revision, options.search, device=options.device, attention=options.attention
    )
    engine = BatchingEngine(checkpoint, choose_limits(options, checkpoint.device))
    try:
        warm_up(engine)
    except BaseException:
        engine.close()
        raise
    log.info("engine ready after %.1f s", time.monotonic() - started)
    return engine


def choose_limits(options: EngineOptions, device: torch.device) -> EngineLimits:
    """On CUDA batches are padded to fixed sizes, so that kernels are chosen once and a picture keeps its bucket."""
    if device.type != "cuda":
        return EngineLimits(options.max_batch, options.max_waiting)
    buckets = tuple(size for size in CUDA_BUCKETS if size <= 2 * options.max_batch)
    # one 1024² picture keeps a GPU's VAE kernels busy; more only costs memory
    return EngineLimits(options.max_batch, options.max_waiting, decode_batch=1, buckets=buckets)


def warm_up(engine: BatchingEngine) -> None:
    """Draw one picture of the checkpoint's own size.

    Raises:
        CheckpointError: the picture failed, with the engine's reason.

    """
    defaults = engine.info.defaults
    spec = PictureSpec(
        "warm up",
        "",
        defaults.width,
        defaults.height,
        WARM_UP_STEPS,
        defaults.guidance_scale,
        0,
        defaults.scheduler,
    )
    events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    engine.submit(EngineJob("warm-up", (spec,)), events.put)
    while True:
        event = events.get()
        if isinstance(event, Failed):
            raise CheckpointError(f"the warm-up picture failed: {event.error}")
        if isinstance(event, Completed):
            return
