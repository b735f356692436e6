"""A worker's own fitness check: before the first job it draws one small picture, start to end.

A GPU that is seen but cannot be used, kernels that do not fit the card, a checkpoint that yields nothing: all of them
otherwise fail somebody's first job. A failed check ends the process, and RunPod starts another worker elsewhere. The
picture warms the card up as well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference.engine.types import Cancelled, Completed, EngineError, EngineJob, Failed, PictureDone, PictureSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inference.engine.types import Engine, EngineEvent
    from inference.settings import InferenceSettings

STEPS = 2  # both a first step and a later one
SIDE = 64
DEADLINE_S = 300.0  # a first call may compile kernels


class UnfitError(Exception):
    """This worker cannot draw; the message says why."""


def engine_draws(
    engine: Engine, settings: InferenceSettings, deadline_s: float = DEADLINE_S
) -> Callable[[], Awaitable[None]]:
    """The check, for the SDK's `register_fitness_check`. The SDK reports it by its name, `checkpoint_draws`."""

    async def checkpoint_draws() -> None:
        """Draw.

        Raises:
            UnfitError: the engine refused, failed, drew in black alone, or did not end in time.

        """
        try:
            async with asyncio.timeout(deadline_s):
                await _draw(engine, max(SIDE, settings.min_side))
        except TimeoutError:
            raise UnfitError(f"a test picture was not drawn within {deadline_s:g} seconds") from None

    return checkpoint_draws


async def _draw(engine: Engine, side: int) -> None:
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[EngineEvent] = asyncio.Queue()  # bounded by the job: two steps of one picture
    job = EngineJob("fitness", (_picture(engine, side),))

    def hear(event: EngineEvent) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        engine.submit(job, hear)
    except EngineError as problem:
        raise UnfitError(f"a test picture was refused: {problem}") from None
    try:
        while not _is_end(await events.get()):
            pass
    finally:
        engine.cancel(job.id)


def _is_end(event: EngineEvent) -> bool:
    match event:
        case PictureDone() if not event.pixels.any():
            raise UnfitError("a test picture is black: the checkpoint overflows in this precision")
        case Failed(error=error):
            raise UnfitError(f"a test picture failed: {error}")
        case Cancelled():
            raise UnfitError("a test picture was cancelled")
    return isinstance(event, Completed)


def _picture(engine: Engine, side: int) -> PictureSpec:
    defaults = engine.info.defaults
    return PictureSpec(
        prompt="a red circle on a white background",
        negative_prompt=defaults.negative_prompt,
        width=side,
        height=side,
        steps=STEPS,
        guidance_scale=defaults.guidance_scale,
        seed=1,
        scheduler=defaults.scheduler,
    )
