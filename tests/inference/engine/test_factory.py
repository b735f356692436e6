from __future__ import annotations

import dataclasses
import os
import queue
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.factory import (
    EngineOptions,
    choose_limits,
    compile_shapes,
    keep_compiled,
    open_engine,
    warm_up,
)
from inference.engine.levers import Levers
from inference.engine.tuning import Tuned, write_table
from inference.engine.types import CheckpointError, Completed, EngineJob, Failed, PictureSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inference.engine.checkpoint import Checkpoint

SEARCH = (Path(__file__).resolve().parents[3] / "inference" / "checkpoints",)


def test_opening_draws_a_picture_first() -> None:
    engine = open_engine(EngineOptions(checkpoint="tiny", search=SEARCH, device="cpu"))
    try:
        assert engine.stats().pictures_done == 1
        assert engine.stats().step_ms > 0
        assert engine.info.demonstration
        assert "euler" in engine.info.schedulers
        assert len(engine.info.sha256) == 64
    finally:
        engine.close()


def test_a_failing_warm_up_is_a_checkpoint_error(checkpoint: Checkpoint) -> None:
    def unet(*_args: Any, **_keywords: Any) -> Any:
        raise RuntimeError("no kernel")

    engine = BatchingEngine(dataclasses.replace(checkpoint, unet=unet), EngineLimits())
    with pytest.raises(CheckpointError, match="warm-up"):
        warm_up(engine)
    engine.close()


def test_limits_on_cuda_are_buckets_and_on_a_cpu_none() -> None:
    options = EngineOptions(max_batch=8, max_waiting=5)
    assert choose_limits(options, torch.device("cpu")).buckets == ()
    cuda = choose_limits(options, torch.device("cuda"))
    assert cuda.buckets == (1, 2, 4, 8, 16)
    assert cuda.decode_batch == 1
    assert cuda.max_waiting == 5


def test_buckets_come_from_the_settings_else_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    table = tmp_path / "tuning.json"
    write_table(table, Tuned("a card", torch.__version__, buckets=(2, 8, 32)))
    cuda = torch.device("cuda")
    assert choose_limits(EngineOptions(max_batch=8, tuning_table=table), cuda).buckets == (2, 8, 16)
    assert choose_limits(EngineOptions(max_batch=16, tuning_table=table), cuda).buckets == (2, 8, 32)
    assert choose_limits(EngineOptions(max_batch=8, tuning_table=table, buckets=(4, 12)), cuda).buckets == (4, 12)


def test_what_is_compiled_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    keep_compiled(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere", "an operator's own choice stays"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_every_bucket_is_compiled_for_the_checkpoints_own_size(checkpoint: Checkpoint) -> None:
    class FakeRunner:
        rows: tuple[int, ...] = ()

        def prepare(self, shapes: Iterable[Mapping[str, torch.Tensor]]) -> None:
            self.rows = tuple(len(shape["sample"]) for shape in shapes)

    runner: Any = FakeRunner()
    compiled = dataclasses.replace(checkpoint, runner=runner, levers=Levers(compile="regional"))
    compile_shapes(compiled, EngineLimits(buckets=(2, 4)))
    assert runner.rows == (2, 4)
    runner.rows = ()
    compile_shapes(dataclasses.replace(compiled, levers=Levers(cuda_graphs=True)), EngineLimits(buckets=(2, 4)))
    assert runner.rows == ()


def test_what_cannot_be_compiled_runs_as_it_is(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    class NoCompiler:
        def prepare(self, shapes: Iterable[Mapping[str, torch.Tensor]]) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease specify")

    runner: Any = NoCompiler()
    info = dataclasses.replace(checkpoint.info, levers={"compile": "regional", "vae": "fp32"})
    compiled = dataclasses.replace(checkpoint, runner=runner, levers=Levers(compile="regional"), info=info)
    left = compile_shapes(compiled, EngineLimits(buckets=(2,)))
    assert (left.levers, left.runner) == (Levers(), None)
    assert left.info.levers == {"compile": "off", "vae": "fp32"}, "receipts tell what is so"
    assert "Failed to find C compiler." in caplog.text
    kept = compile_shapes(
        dataclasses.replace(compiled, levers=Levers("sdpa", "regional", cuda_graphs=True)), EngineLimits()
    )
    assert kept.runner is not None
    assert kept.runner.levers == Levers(cuda_graphs=True)
    with pytest.raises(CheckpointError, match="IGEN_COMPILE asks for what does not work here: Failed to find"):
        compile_shapes(compiled, EngineLimits(buckets=(2,)), forced=True)


def test_lack_of_memory_lets_the_graphs_go(checkpoint: Checkpoint) -> None:
    class FakeRunner:
        forgotten = 0

        def __call__(self, *args: Any, **inputs: Any) -> Any:
            if not self.forgotten:
                raise torch.OutOfMemoryError("full")
            return checkpoint.unet(*args, **inputs)

        def forget(self) -> None:
            self.forgotten += 1

    runner: Any = FakeRunner()
    engine = BatchingEngine(dataclasses.replace(checkpoint, runner=runner), EngineLimits())
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    specs = tuple(PictureSpec("x", "", 64, 64, 2, 3.0, seed, "euler") for seed in (1, 2))
    engine.submit(EngineJob("two", specs), events.put)
    while not isinstance(event := events.get(timeout=60), Completed | Failed):
        pass
    engine.close()
    assert isinstance(event, Completed)
    assert runner.forgotten == 1


def test_cuda_demanded_where_there_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match="IGEN_DEVICE"):
        open_engine(EngineOptions(search=SEARCH, device="cuda"))
