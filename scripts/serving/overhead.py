"""What the engine itself costs: its time outside the UNet and the VAE."""

from __future__ import annotations

import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.types import EngineEvent

STEPS = 12


class Metered:
    """A module, or one of its methods, whose calls are timed. `seconds` is over all calls."""

    def __init__(self, wrapped: Any, method: str | None = None) -> None:
        self._wrapped = wrapped
        self._method = method
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        return self._timed(found) if name == self._method else found

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """The wrapped module's answer."""
        return self._timed(self._wrapped)(*args, **keywords)

    def _timed(self, function: Any) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                self.seconds += time.perf_counter() - started

        return call


def measure_overhead(checkpoint: str, search: tuple[Path, ...], together: int, pictures: int) -> dict[str, float]:
    """Draw `pictures`, always `together` of them at once, and tell where the seconds went.

    Returns seconds: `whole`, `unet`, `vae`, and `rest`, which is everything else that the engine's thread does:
    prompts (known after the first), schedules, noise, batching, events. Only for a CPU, where a call takes its time.
    """
    from inference.engine.checkpoint import load_checkpoint  # noqa: PLC0415 - only in the contestants' processes
    from inference.engine.engine import BatchingEngine, EngineLimits  # noqa: PLC0415
    from inference.engine.types import Completed, EngineJob, PictureSpec  # noqa: PLC0415

    with ThreadPoolExecutor(1) as loader:
        found = loader.submit(load_checkpoint, checkpoint, None, search, device="cpu").result()
    unet, vae = Metered(found.unet), Metered(found.vae, "decode")
    engine = BatchingEngine(replace(found, unet=unet, vae=vae), EngineLimits(max_batch=together))
    defaults = engine.info.defaults

    def group(number: int) -> None:
        events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        for index in range(together):
            spec = PictureSpec(
                f"a red circle, {index}", "", defaults.width, defaults.height, STEPS, 3.0, index, "euler"
            )
            engine.submit(EngineJob(f"{number}-{index}", (spec,)), events.put)
        ended = 0
        while ended < together:
            ended += isinstance(events.get(), Completed)

    group(0)
    unet.seconds = vae.seconds = 0.0
    started = time.perf_counter()
    for number in range(1, 1 + max(1, pictures // together)):
        group(number)
    whole = time.perf_counter() - started
    engine.close()
    return {"whole": whole, "unet": unet.seconds, "vae": vae.seconds, "rest": whole - unet.seconds - vae.seconds}
