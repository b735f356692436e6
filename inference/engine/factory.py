"""Opens the engine: load, choose limits for the device, draw a warm-up picture."""

from __future__ import annotations

import logging
import os
import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.loras import LoraShelf
from inference.engine.source import CheckpointSource
from inference.engine.types import CheckpointError, Completed, EngineJob, Failed, PictureSpec

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint
    from inference.engine.types import EngineEvent

log = logging.getLogger(__name__)

CUDA_BUCKETS = (1, 2, 4, 8, 16, 32)
WARM_UP_STEPS = 2
MB = 1_000_000
SHARE_OF_FREE = 0.5  # of the memory left beside the first checkpoint; the rest is for what is being drawn


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
    memory_mode: str = "auto"
    checkpoint_memory_mb: int | None = None
    lora_folder: Path | None = None
    lora_cache_mb: int = 512


def open_engine(options: EngineOptions) -> BatchingEngine:
    """Load a checkpoint and return an engine that has drawn a picture. Blocks for as long as that takes.

    Raises:
        CheckpointError: it cannot be loaded, or its first picture fails.

    """
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.monotonic()
    source = CheckpointSource(
        options.checkpoint,
        options.revision,
        options.search,
        device=options.device,
        attention=options.attention,
        memory_mode=options.memory_mode,
    )
    checkpoint = source.open()
    engine = BatchingEngine(
        checkpoint,
        choose_limits(options, checkpoint.device),
        source=source,
        shelf=LoraShelf(options.lora_folder, keep_bytes=options.lora_cache_mb * MB),
        budget_bytes=choose_budget(options, checkpoint),
    )
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


def choose_budget(options: EngineOptions, checkpoint: Checkpoint) -> int:
    """Bytes of weights that may be loaded at once, the engine's own checkpoint among them."""
    if options.checkpoint_memory_mb is not None:
        return options.checkpoint_memory_mb * MB
    if checkpoint.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(checkpoint.device)
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return checkpoint.weight_bytes + int(free * SHARE_OF_FREE)


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
