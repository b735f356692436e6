"""Opens the engine: load, choose limits for the device, draw a warm-up picture."""

from __future__ import annotations

import logging
import os
import queue
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from inference.engine.compiling import FastUnet
from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.fitting import Tuning, tuned_for
from inference.engine.gauge import Probe, probe_inputs
from inference.engine.levers import WantedLevers
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
COMPILE_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
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
    compile: str = "auto"
    cuda_graphs: str = "auto"
    fused_qkv: str = "auto"
    vae_precision: str = "auto"
    buckets: tuple[int, ...] = ()
    tuning_table: Path | None = None
    compile_cache: Path | None = None

    @property
    def tuning(self) -> Tuning:
        """How the levers are chosen."""
        switches = {"cuda_graphs": self.cuda_graphs, "fused_qkv": self.fused_qkv}
        wanted = WantedLevers(self.attention, self.compile, **switches, vae=self.vae_precision)
        return Tuning(wanted, self.tuning_table)


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
        tuning=options.tuning,
    )
    keep_compiled(options.compile_cache)
    checkpoint = source.open()
    limits = choose_limits(options, checkpoint.device)
    checkpoint = compile_shapes(checkpoint, limits, forced=options.compile not in ("auto", "off"))
    engine = BatchingEngine(
        checkpoint,
        limits,
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
    known = tuned_for(options.tuning_table, device)
    sizes = (known.buckets if known is not None else ()) or CUDA_BUCKETS
    most = 2 * options.max_batch
    buckets = options.buckets or (*(size for size in sizes if size < most), most)
    # one 1024² picture keeps a GPU's VAE kernels busy; more only costs memory
    return EngineLimits(options.max_batch, options.max_waiting, decode_batch=1, buckets=buckets)


def keep_compiled(folder: Path | None) -> None:
    """Let what `torch.compile` makes be found by the next process; to be called before the first compilation."""
    if folder is not None:
        for variable, name in COMPILE_CACHES.items():
            os.environ.setdefault(variable, str(folder / name))


def compile_shapes(checkpoint: Checkpoint, limits: EngineLimits, *, forced: bool = False) -> Checkpoint:
    """Compile for the checkpoint's own size in every bucket, where its levers say compile at all.

    Where that fails, the checkpoint that is returned runs uncompiled.

    Raises:
        CheckpointError: it fails, and the operator `forced` it.

    """
    if checkpoint.runner is None or checkpoint.levers.compile == "off":
        return checkpoint
    defaults = checkpoint.info.defaults
    ids = 5 if checkpoint.wants_aesthetics else 6
    started = time.monotonic()
    probes = (Probe(defaults.height, defaults.width, ids=ids, rows=rows) for rows in limits.buckets or (2,))
    try:
        checkpoint.runner.prepare(probe_inputs(checkpoint.unet, probe) for probe in probes)
    except Exception as problem:
        # the compiler throws anything: no C compiler, no memory, a kernel that this device cannot have
        reason = str(problem).strip().split("\n", maxsplit=1)[0] or type(problem).__name__
        if forced:
            raise CheckpointError(f"IGEN_COMPILE asks for what does not work here: {reason}") from problem
        log.warning("nothing is compiled, whatever the table says: %s", reason)
        return uncompiled(checkpoint)
    log.info("compiled for %s rows in %.1f s", limits.buckets, time.monotonic() - started)
    return checkpoint


def uncompiled(checkpoint: Checkpoint) -> Checkpoint:
    """The same with its other levers."""
    levers = replace(checkpoint.levers, compile="off")
    info = replace(checkpoint.info, levers={**checkpoint.info.levers, "compile": "off"})
    runner = None if levers.plain else FastUnet(checkpoint.unet, levers)
    return replace(checkpoint, levers=levers, info=info, runner=runner)


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
