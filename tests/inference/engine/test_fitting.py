from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine import fitting
from inference.engine.checkpoint import load_checkpoint
from inference.engine.fitting import Tuning, fit_levers
from inference.engine.gauge import Probe
from inference.engine.levers import Levers, WantedLevers
from inference.engine.tuning import Tuned, write_table
from inference.engine.types import CheckpointError
from tests.support.checkpoints import CATALOGUE

if TYPE_CHECKING:
    from pathlib import Path

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROBE = Probe(64, 64)
DEVICE = "a card"


class FakeGauge:
    """Chooses what is not plain, whatever it is asked."""

    def __init__(self, *_args: object) -> None: ...

    def choose(self, lever: str, _levers: Levers) -> Any:
        answers: dict[str, Any] = {"attention": "cudnn", "vae": "fp16", "fused_qkv": True, "cuda_graphs": False}
        return answers.get(lever)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """UNet and VAE on a CPU, which are told of a card; no kernel is run."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: DEVICE)
    monkeypatch.setattr(fitting, "DeviceGauge", FakeGauge)
    loaded = load_checkpoint("tiny", None, (CATALOGUE,), device="cpu")
    return copy.deepcopy(loaded.unet), copy.deepcopy(loaded.vae)


def test_on_a_cpu_every_lever_is_left(parts: tuple[Any, Any]) -> None:
    wanted = WantedLevers(compile="whole", cuda_graphs="on", fused_qkv="on", vae="fp16")
    fitted = fit_levers(*parts, CPU, Tuning(wanted), PROBE, resident=True)
    assert fitted.runner is None
    assert fitted.chosen.levers == Levers()
    assert fitted.vae is parts[1]
    assert fitted.vae.dtype == torch.float32


def test_a_loaded_checkpoint_on_a_cpu_calls_its_unet_as_it_is() -> None:
    loaded = load_checkpoint("tiny", None, (CATALOGUE,), device="cpu", tuning=Tuning(WantedLevers(fused_qkv="on")))
    assert loaded.unet_for(hooked=False) is loaded.unet
    assert loaded.unet_for(hooked=True) is loaded.unet


def test_on_cuda_what_was_chosen_is_set(parts: tuple[Any, Any]) -> None:
    fitted = fit_levers(*parts, CUDA, Tuning(), PROBE, resident=True)
    assert fitted.chosen.levers == Levers("cudnn", fused_qkv=True, vae="fp16")
    assert fitted.runner is not None
    assert fitted.runner.levers.fused_qkv
    assert fitted.vae.dtype == torch.float16


def test_force_and_table_are_honoured(parts: tuple[Any, Any], tmp_path: Path) -> None:
    table = tmp_path / "tuning.json"
    levers = {"attention": "flash", "fused_qkv": False, "vae": "fp32"}
    write_table(table, Tuned(DEVICE, torch.__version__, levers=levers))
    fitted = fit_levers(*parts, CUDA, Tuning(WantedLevers(attention="sdpa"), table), PROBE, resident=True)
    assert fitted.chosen.levers == Levers()
    assert fitted.runner is None
    assert fitted.chosen.origins["attention"] == "forced"
    assert fitted.chosen.origins["fused_qkv"] == "table"
    fitted = fit_levers(*parts, CUDA, Tuning(WantedLevers(fused_qkv="on"), table), PROBE, resident=True)
    assert fitted.chosen.levers == Levers("flash", fused_qkv=True)


def test_a_table_that_names_what_is_gone_is_measured_anew(parts: tuple[Any, Any], tmp_path: Path) -> None:
    table = tmp_path / "tuning.json"
    write_table(table, Tuned(DEVICE, torch.__version__, levers={"attention": "xformers"}))
    fitted = fit_levers(*parts, CUDA, Tuning(table=table), PROBE, resident=True)
    assert fitted.chosen.origins["attention"] == "measured"


def test_what_is_forced_and_cannot_be_had_is_an_error(parts: tuple[Any, Any]) -> None:
    with pytest.raises(CheckpointError, match="IGEN_ATTENTION asks for xformers"):
        fit_levers(*parts, CUDA, Tuning(WantedLevers(attention="xformers")), PROBE, resident=True)
    with pytest.raises(CheckpointError, match="IGEN_ATTENTION asks for flash"):
        fit_levers(*parts, CPU, Tuning(WantedLevers(attention="flash")), PROBE, resident=True)
