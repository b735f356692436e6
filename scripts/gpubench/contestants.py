"""Stock diffusers and our engine, each drawing pictures of the same weights, timed step by step."""

from __future__ import annotations

import copy
import queue
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from inference.engine.attention import choose_attention
from inference.engine.checkpoint import Checkpoint
from inference.engine.compiling import FastUnet, twin_of
from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.gauge import Probe, device_clock, halved, probe_inputs
from inference.engine.samplers import Samplers
from inference.engine.tuning import median_s
from inference.engine.types import (
    Cancelled,
    CheckpointDefaults,
    Completed,
    EngineInfo,
    EngineJob,
    Failed,
    OutOfMemoryError,
    PictureDone,
    PictureSpec,
    Progressed,
)
from scripts.gpubench.lossy import CachedUnet, in_fp8
from scripts.gpubench.watching import DoesNotFitError, between, mark, memory_watched, seconds_of, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from scripts.gpubench.rows import Row
    from scripts.gpubench.sdxl import Models

    Pixels = list[NDArray[np.uint8]]

WARM_STEPS = 3
GUIDANCE = 7.5
SEED = 1000
NEGATIVE = "blurry"
_serial = count()


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of a batch. Seconds from the request to the last pixel, and between steps; `warm_up_s` before it."""

    total_s: float
    step_s: float
    warm_up_s: float
    vae_s: float
    peak_bytes: int | None
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Load:
    """What is drawn: `batch` pictures of `size` pixels a side in `steps` steps with guidance."""

    batch: int
    size: int
    steps: int

    def seeds(self) -> list[int]:
        """The same for every contestant, so that their pictures can be compared."""
        return [SEED + i for i in range(self.batch)]


def time_stock(models: Models, row: Row, load: Load) -> Timing:
    """Stock diffusers, as its documentation says.

    Raises:
        DoesNotFitError, ImportError: this row cannot be had here.

    """
    unet = twin_of(models.unet)
    # as it comes from from_pretrained; its documentation's compiled recipe has channels last
    unet.to(memory_format=torch.channels_last if row.name == "compiled" else torch.contiguous_format)
    pipeline = stock_pipeline(models, unet=unet)
    if row.name == "xformers":
        pipeline.enable_xformers_memory_efficient_attention()
    if row.name == "compiled":
        unet.compile(mode="max-autotune", fullgraph=True)
    with memory_watched(models.device) as peak:
        warm_up_s = run_stock(pipeline, replace(load, steps=WARM_STEPS))[0]
        peak.reset()
        total_s, step_s, pixels = run_stock(pipeline, load)
        peak_bytes = peak.bytes()
        # where the VAE asks for it, stock moves it to float32 and back in every call: the moves are in total_s alone
        vae = pipeline.vae.float() if pipeline.vae.config.force_upcast else pipeline.vae
        return Timing(total_s, step_s, warm_up_s, _decode_s(vae, load), peak_bytes, pixels)


def stock_pipeline(models: Models, *, unet: Any = None, dtype: torch.dtype | None = None) -> Any:
    """A StableDiffusionXLPipeline over the models, its VAE a copy of its own in `dtype` (the models')."""
    import diffusers  # noqa: PLC0415 - seconds, and after the libraries were made quiet

    config = {key: value for key, value in models.scheduler.items() if key != "_class_name"}
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=copy.deepcopy(models.vae).to(dtype=dtype or models.dtype),
        text_encoder=models.encoders[0],
        text_encoder_2=models.encoders[1],
        tokenizer=models.tokenizers[0],
        tokenizer_2=models.tokenizers[1],
        unet=models.unet if unet is None else unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(config),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_stock(pipeline: Any, load: Load) -> tuple[float, float, Pixels]:
    """Seconds in all, seconds a step, and the pictures."""
    device = pipeline.unet.device
    ticks: list[Any] = []

    def tick(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        ticks.append(mark(device))
        return values

    wait(device)
    started = time.perf_counter()
    pictures = pipeline(
        prompt=prompts(load, "same"),
        negative_prompt=[NEGATIVE] * load.batch,
        width=load.size,
        height=load.size,
        num_inference_steps=load.steps,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in load.seeds()],
        output_type="np",
        callback_on_step_end=tick,
    ).images
    total_s = time.perf_counter() - started
    return total_s, between(seconds_of(ticks)), list((pictures * 255).round().astype("uint8"))


def time_engine(models: Models, row: Row, load: Load) -> Timing:
    """Our engine with a row's levers, through the interface that the server uses.

    Raises:
        DoesNotFitError, ImportError: this row cannot be had here.

    """
    unet = twin_of(models.unet)
    unet.to(memory_format=torch.channels_last if row.channels_last else torch.contiguous_format)
    started = time.perf_counter()
    with memory_watched(models.device) as peak:
        with engine_over(models, row, load, unet) as engine:
            draw(engine, replace(load, steps=WARM_STEPS), "warm")
            warm_up_s = time.perf_counter() - started
            peak.reset()
            total_s, step_s, pixels = draw(engine, load, "same")
            peak_bytes = peak.bytes()
        vae = _vae_for(models, row.levers.vae)
        return Timing(total_s, step_s, warm_up_s, _decode_s(vae, load), peak_bytes, pixels)


@contextmanager
def engine_over(models: Models, row: Row, load: Load, unet: Any) -> Iterator[BatchingEngine]:
    """An engine that draws a batch in one UNet call, levers set, compiled for that batch."""
    levers = row.levers
    choose_attention(unet, levers.attention, models.device)
    runner: Any = None
    if row.lossy == "caching":
        runner = CachedUnet(unet)
    elif row.lossy == "fp8":
        unet = in_fp8(unet)
    rows = 2 * load.batch
    if runner is None and not levers.plain:
        runner = FastUnet(unet, levers)
        runner.prepare([probe_inputs(unet, Probe(load.size, load.size, rows=rows))])
    limits = EngineLimits(load.batch, decode_batch=1, buckets=(rows,))
    engine = BatchingEngine(checkpoint_over(models, unet, levers, runner), limits)
    try:
        yield engine
    finally:
        engine.close()


def checkpoint_over(models: Models, unet: Any, levers: Any, runner: Any = None) -> Checkpoint:
    """What the loader would have made of the models."""
    name = torch.cuda.get_device_name(models.device) if models.device.type == "cuda" else "cpu"
    return Checkpoint(
        unet=unet,
        vae=_vae_for(models, levers.vae),
        tokenizers=models.tokenizers,
        text_encoders=models.encoders,
        scheduler_config=models.scheduler,
        zero_empty_prompt=True,
        latent_channels=4,
        device=models.device,
        dtype=models.dtype,
        info=EngineInfo(
            checkpoint="random weights",
            sha256="",
            demonstration=False,
            device=name,
            dtype=str(models.dtype).removeprefix("torch."),
            attention=levers.attention,
            defaults=CheckpointDefaults(models.size, models.size),
            schedulers=Samplers(models.scheduler).names,
            versions={},
        ),
        levers=levers,
        runner=runner,
    )


def _vae_for(models: Models, precision: str) -> Any:
    if precision == "fp32" or models.vae.dtype != torch.float32:
        return models.vae
    half = halved(copy.deepcopy(models.vae))
    if half is None:
        raise RuntimeError("this VAE cannot be rescaled")
    return half


def draw(engine: BatchingEngine, load: Load, what: str) -> tuple[float, float, Pixels]:
    """One job of a whole batch: seconds in all, seconds a step, and the pictures.

    Raises:
        DoesNotFitError: the engine had to draw it in smaller batches, or could not.

    """
    events: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
    specs = [
        PictureSpec(prompt, NEGATIVE, load.size, load.size, load.steps, GUIDANCE, seed, "euler", syntax="plain")
        for prompt, seed in zip(prompts(load, what), load.seeds(), strict=True)
    ]
    started = time.perf_counter()
    job = EngineJob(f"bench-{next(_serial)}", tuple(specs))
    engine.submit(job, lambda event: events.put((time.perf_counter(), event)))
    ticks: list[float] = []
    pictures: dict[int, PictureDone] = {}
    while True:
        at, event = events.get()
        if isinstance(event, Progressed) and event.step:
            ticks.append(at)
        elif isinstance(event, PictureDone):
            pictures[event.index] = event
        elif isinstance(event, Failed | Cancelled):
            _fail(event)
        elif isinstance(event, Completed):
            break
    if any(picture.bucket < 2 * load.batch for picture in pictures.values()):
        raise DoesNotFitError("out of memory: the engine went on with smaller batches")
    return at - started, between(ticks), [pictures[i].pixels for i in range(load.batch)]


def _fail(event: Failed | Cancelled) -> None:
    problem = event.error if isinstance(event, Failed) else None
    if isinstance(problem, OutOfMemoryError):
        raise DoesNotFitError(str(problem))
    raise RuntimeError(f"the engine failed: {problem}")


def prompts(load: Load, what: str) -> list[str]:
    """Each its own, so that no contestant answers from what it kept of another's."""
    return [f"{what} circle on a blue background {i}" for i in range(load.batch)]


@torch.inference_mode()
def _decode_s(vae: Any, load: Load) -> float:
    """Seconds of the VAE for one picture."""
    device, side = vae.device, load.size // 8
    latents = torch.randn(1, vae.config.latent_channels, side, side, device=device).to(vae.dtype)
    return median_s(lambda: vae.decode(latents, return_dict=False), device_clock(device))
