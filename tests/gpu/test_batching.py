"""What a picture owes to its neighbours and to its batch's size, and what is left when memory runs out."""

from __future__ import annotations

import gc
import queue
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.engine.compiling import call_with
from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.gauge import Probe, probe_inputs
from inference.engine.levers import Levers
from inference.engine.types import Cancelled, Completed, EngineJob, Failed, PictureDone, PictureSpec
from scripts.gpubench.contestants import checkpoint_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from scripts.gpubench.sdxl import Models

    Record = Callable[[str, object], None]
    Events = queue.SimpleQueue[Any]

STEPS = 4
ROWS = 8
CAPPED_ROWS = 32  # a step of so many takes more memory than decoding one picture does
# levels of 255 between batches of other sizes: on a CPU the product promises one. On CUDA nothing is promised before
# it has been measured; more than this would be a fault and no rounding
MOST_LEVELS = {"cpu": 1.0, "cuda": 32.0}


@contextmanager
def engine_of(models: Models, *buckets: int, unet: Any = None, most: int = ROWS // 2) -> Iterator[BatchingEngine]:
    checkpoint = checkpoint_over(models, models.unet if unet is None else unet, Levers())
    engine = BatchingEngine(checkpoint, EngineLimits(most, decode_batch=1, buckets=buckets))
    try:
        yield engine
    finally:
        engine.close()


def spec_of(models: Models, seed: int) -> PictureSpec:
    prompt = f"a red circle on a blue background {seed}"
    return PictureSpec(prompt, "", models.size, models.size, STEPS, 5.0, seed, "euler")


def start(engine: BatchingEngine, *specs: PictureSpec, strict: bool = False) -> Events:
    events: Events = queue.SimpleQueue()
    engine.submit(EngineJob(f"job-{id(events)}", specs, strict), events.put)
    return events


def wait(events: Events) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Pictures and the batch sizes that they were drawn in."""
    done: dict[int, PictureDone] = {}
    while True:
        event = events.get(timeout=250)
        if isinstance(event, PictureDone):
            done[event.index] = event
        if isinstance(event, Completed):
            return [done[i].pixels for i in sorted(done)], [done[i].bucket for i in sorted(done)]
        assert not isinstance(event, Failed | Cancelled), event


def levels(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).max())


def test_neighbours_in_a_bucket_change_nothing(models: Models, record_property: Record) -> None:
    with engine_of(models, ROWS) as engine:
        alone, sizes = wait(start(engine, spec_of(models, 1)))
        together, more = wait(start(engine, *(spec_of(models, seed) for seed in (1, 2, 3, 4))))
    assert sizes == [ROWS]
    assert set(more) == {ROWS}
    found = levels(alone[0], together[0])
    record_property("largest difference in levels of 255", found)
    assert found <= (0 if models.device.type == "cpu" else MOST_LEVELS["cuda"])


def test_another_bucket_changes_no_more_than_rounding(models: Models, record_property: Record) -> None:
    with engine_of(models, 2) as engine:
        small = wait(start(engine, spec_of(models, 1)))[0][0]
    with engine_of(models, ROWS) as engine:
        large = wait(start(engine, spec_of(models, 1)))[0][0]
    found = levels(small, large)
    record_property("largest difference in levels of 255", found)
    record_property("mean difference", f"{np.abs(small.astype(int) - large.astype(int)).mean():.4f}")
    assert found <= MOST_LEVELS[models.device.type]


def test_strict_pictures_are_the_same_to_the_bit(models: Models) -> None:
    with engine_of(models, 2, ROWS) as engine:
        alone = wait(start(engine, spec_of(models, 1), strict=True))[0][0]
        neighbours = start(engine, *(spec_of(models, seed) for seed in (2, 3, 4)))
        beside = wait(start(engine, spec_of(models, 1), strict=True))[0][0]
        wait(neighbours)
    assert np.array_equal(alone, beside)


def test_out_of_memory_halves_the_batch_and_loses_no_picture(models: Models) -> None:
    """On a GPU the allocator is capped; its twin on a CPU has a UNet that refuses more than half."""
    rows = CAPPED_ROWS if models.device.type == "cuda" else ROWS
    specs = [spec_of(models, seed) for seed in range(rows // 2)]
    if models.device.type == "cuda":
        drawn, sizes = _draw_capped(models, specs)
    else:
        with engine_of(models, 2, 4, rows, unet=_refusing(models.unet, rows // 2)) as engine:
            drawn, sizes = wait(start(engine, *specs))
    assert len(drawn) == rows // 2
    assert max(sizes) < rows


def _refusing(unet: Any, most: int) -> Any:
    class Refusing:
        config = unet.config

        def __call__(self, sample: torch.Tensor, *args: Any, **inputs: Any) -> Any:
            if len(sample) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return unet(sample, *args, **inputs)

    return Refusing()


def _draw_capped(models: Models, specs: list[PictureSpec]) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Between what one picture's steps take and what the whole batch's do. The VAE works on one picture always."""
    small, large = (_peak_of_a_step(models, rows) for rows in (2, CAPPED_ROWS))
    # decoding one picture must have room too
    least = max(small, _peak_of(lambda: models.vae.decode(_latents(models))))
    assert least < 0.9 * large, "or no cap shows anything"
    total = torch.cuda.get_device_properties(models.device).total_memory
    torch.cuda.set_per_process_memory_fraction((least + large) / 2 / total, models.device)
    try:
        with engine_of(models, 2, 4, 8, 16, CAPPED_ROWS, most=CAPPED_ROWS // 2) as engine:
            return wait(start(engine, *specs))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, models.device)


def _latents(models: Models) -> torch.Tensor:
    return torch.randn(1, 4, models.size // 8, models.size // 8, device=models.device).to(models.vae.dtype)


def _peak_of_a_step(models: Models, rows: int) -> int:
    probe = Probe(models.size, models.size, rows=rows)
    try:
        return _peak_of(lambda: call_with(models.unet, probe_inputs(models.unet, probe)))
    except torch.OutOfMemoryError:  # the whole card is less than it takes
        return torch.cuda.get_device_properties(models.device).total_memory


@torch.inference_mode()
def _peak_of(call: Callable[[], object]) -> int:
    """Bytes that the allocator had to hold at once."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    return peak
