"""Waiting for a job to change, for callers that hold their connection open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.jobs import JobRecord

CHANGE_EVERY_S = 0.2  # a long poll answers a mere change of progress at most this often


async def wait_end(record: JobRecord, seconds: float) -> None:
    """Until the job is terminal or forgotten, at most `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(deadline):
            while not (record.state.terminal or record.removed):
                await record.pulse.wait()
    except TimeoutError:
        return


async def wait_change(record: JobRecord, seconds: float) -> None:
    """Until the job is terminal, or something of it changed after `CHANGE_EVERY_S`, at most `seconds`."""
    pulse = asyncio.create_task(record.pulse.wait())
    try:
        await wait_end(record, min(seconds, CHANGE_EVERY_S))
        if not record.state.terminal and not record.removed:
            await asyncio.wait([pulse], timeout=max(0.0, seconds - CHANGE_EVERY_S))
    finally:
        pulse.cancel()
