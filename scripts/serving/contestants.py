"""Three ways to serve the same checkpoint, each in a process of its own.

In one process their teams of OpenMP threads would be more threads than cores, libgomp would stop spinning at its
barriers, and each would run at half its speed.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.serving.load import Round, run_clients
from scripts.serving.overhead import measure_overhead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from inference.engine.types import EngineEvent, PictureSpec
    from scripts.serving.load import Work

Asked = tuple["PictureSpec", Future[None]]
Line = queue.SimpleQueue[Asked | None]

STOCK, WINDOW, ENGINE = "stock, one by one", "stock, equal requests in a window", "engine"
ROOT = Path(__file__).resolve().parents[2]
WINDOW_S = 0.05
MAX_BATCH = 8


class Contestant:
    """One way to serve, in a process of its own, told which requests to serve."""

    def __init__(self, kind: str, checkpoint: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, checkpoint, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.about: dict[str, Any] = self._pipe.recv()

    def close(self) -> None:
        """Let the process go."""
        self._pipe.close()
        self._process.join(timeout=30)

    def round(self, work: Work) -> Round:
        """Send one round's requests there.

        Raises:
            RuntimeError: a request failed.

        """
        found = self._ask(("round", work))
        if not isinstance(found, Round):
            raise RuntimeError(f"a contestant failed: {found}")  # noqa: TRY004 - an outcome, not a wrong argument
        return found

    def overhead(self, together: int, pictures: int) -> dict[str, float]:
        """The engine's own time; see `measure_overhead`."""
        found: dict[str, float] = self._ask(("overhead", (together, pictures)))
        return found

    def _ask(self, what: object) -> Any:
        self._pipe.send(what)
        return self._pipe.recv()


def _serve(pipe: Connection, kind: str, checkpoint: str, threads: int) -> None:
    import torch  # noqa: PLC0415 - only in the contestants' processes

    from inference.engine.checkpoint import choose_device  # noqa: PLC0415
    from inference.engine.locate import locate  # noqa: PLC0415

    if threads:
        torch.set_num_threads(threads)
    search = (ROOT / "inference" / "checkpoints",)
    device = choose_device("auto")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    about: dict[str, Any] = {"threads": torch.get_num_threads()}
    if kind == ENGINE:
        draw, close, engine = _engine(checkpoint, search)
        about["info"] = engine.info
    else:
        folder = locate(checkpoint, None, search).folder
        draw, close = _stock(folder, dtype, str(device), MAX_BATCH if kind == WINDOW else 1)
    pipe.send(about)
    while True:
        try:
            what, given = pipe.recv()
        except EOFError:
            close()
            return
        try:
            if what == "overhead":
                pipe.send(measure_overhead(checkpoint, search, *given))
            else:
                pipe.send(run_clients(given, draw))
        except Exception as problem:  # noqa: BLE001 - the process's edge; the other side says it
            pipe.send(repr(problem))


def _engine(checkpoint: str, search: tuple[Path, ...]) -> tuple[Callable[[PictureSpec], None], Any, Any]:
    from inference.engine.factory import EngineOptions, open_engine  # noqa: PLC0415
    from inference.engine.types import Cancelled, Completed, EngineJob, Failed  # noqa: PLC0415

    with ThreadPoolExecutor(1) as loader:  # as the server does, for the same reason as the processes
        options = EngineOptions(checkpoint, search=search, max_batch=MAX_BATCH)
        engine = loader.submit(open_engine, options).result()
    serial = iter(range(10**9))

    def draw(spec: PictureSpec) -> None:
        events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        engine.submit(EngineJob(f"bench-{next(serial)}", (spec,)), events.put)
        while True:
            event = events.get()
            if isinstance(event, Completed):
                return
            if isinstance(event, Failed | Cancelled):
                raise RuntimeError(f"the engine failed: {event}")  # noqa: TRY004 - an outcome

    return draw, engine.close, engine


def _stock(
    folder: Path, dtype: Any, device: str, most: int
) -> tuple[Callable[[PictureSpec], None], Callable[[], None]]:
    """Stock diffusers in one thread: a pipeline cannot be shared.

    With `most` above one it waits a moment for company, and draws those of the oldest's size, steps and guidance in
    one call; a pipeline can batch no others.
    """
    line: Line = queue.SimpleQueue()
    server = threading.Thread(target=_serve_line, args=(line, folder, dtype, device, most), daemon=True)
    server.start()

    def draw(spec: PictureSpec) -> None:
        done: Future[None] = Future()
        line.put((spec, done))
        done.result()

    return draw, lambda: line.put(None)


def _serve_line(line: Line, folder: Path, dtype: Any, device: str, most: int) -> None:
    pipeline = _load_stock(folder, dtype, device)
    waiting: list[Asked] = []
    while _gather(line, waiting, WINDOW_S if most > 1 else 0.0):
        batch = [entry for entry in waiting if _kind(entry[0]) == _kind(waiting[0][0])][:most]
        waiting = [entry for entry in waiting if entry not in batch]
        try:
            _call(pipeline, [spec for spec, _ in batch])
        except Exception as problem:  # noqa: BLE001 - told to who waits
            for _, done in batch:
                done.set_exception(problem)
        else:
            for _, done in batch:
                done.set_result(None)


def _gather(line: Line, waiting: list[Asked], window_s: float) -> bool:
    """Take all that was sent; with nothing at hand wait for one, and a moment for its company. False at the end."""
    if not waiting:
        item = line.get()
        if item is None:
            return False
        waiting.append(item)
        time.sleep(window_s)
    while not line.empty():
        item = line.get()
        if item is None:
            return False
        waiting.append(item)
    return True


def _kind(spec: PictureSpec) -> tuple[object, ...]:
    return spec.width, spec.height, spec.steps, spec.guidance_scale, spec.scheduler


def _call(pipeline: Any, specs: Sequence[PictureSpec]) -> None:
    import torch  # noqa: PLC0415

    first = specs[0]
    pipeline(
        prompt=[spec.prompt for spec in specs],
        negative_prompt=[spec.negative_prompt for spec in specs],
        width=first.width,
        height=first.height,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(spec.seed) for spec in specs],
        output_type="np",
    )


def _load_stock(folder: Path, dtype: Any, device: str) -> Any:
    from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415

    pipeline = StableDiffusionXLPipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
