from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.factory import EngineOptions, choose_limits, open_engine, warm_up
from inference.engine.types import CheckpointError

if TYPE_CHECKING:
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


def test_cuda_demanded_where_there_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match="IGEN_DEVICE"):
        open_engine(EngineOptions(search=SEARCH, device="cuda"))
