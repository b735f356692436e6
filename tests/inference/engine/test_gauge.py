from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.checkpoint import load_checkpoint
from inference.engine.compiling import call_with
from inference.engine.gauge import DeviceGauge, Probe, device_clock, probe_inputs
from inference.engine.levers import Levers
from tests.support.checkpoints import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference.engine.checkpoint import Checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROBE = Probe(64, 64)


class FakeClock:
    """Makes each call and says that it took the next of the given seconds, three for each candidate."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = [value for value in seconds for _ in range(3)]
        self.calls = 0

    def __call__(self, call: Callable[[], object]) -> float:
        call()
        self.calls += 1
        return self._seconds.pop(0)


@pytest.fixture(scope="module")
def loaded() -> Checkpoint:
    return load_checkpoint("tiny", None, (CATALOGUE,), device="cpu")


def gauge_of(loaded: Checkpoint, *seconds: float, vae: Any = None, device: torch.device = CPU) -> DeviceGauge:
    return DeviceGauge(copy.deepcopy(loaded.unet), vae, device, PROBE, clock=FakeClock(seconds))


def test_probe_inputs_fit_the_unet(loaded: Checkpoint) -> None:
    inputs = probe_inputs(loaded.unet, Probe(64, 128, rows=3))
    with torch.inference_mode():
        assert call_with(loaded.unet, inputs).shape == (3, 4, 8, 16)


@pytest.mark.parametrize(("seconds", "expected"), [((1.0, 0.9), True), ((1.0, 0.99), False), ((1.0, 2.0), False)])
def test_fused_projections_are_timed_on_the_whole_unet(
    seconds: tuple[float, float], *, expected: bool, loaded: Checkpoint
) -> None:
    gauge = gauge_of(loaded, *seconds)
    assert gauge.choose("fused_qkv", Levers()) is expected
    assert not any(tensor.is_inference() for tensor in gauge._unet.parameters()), "or compiling would see two kinds"


def test_what_cannot_be_told_is_left(loaded: Checkpoint) -> None:
    gauge = gauge_of(loaded)
    assert gauge.choose("compile", Levers()) is None
    assert gauge.choose("fused_qkv", Levers(attention="xformers")) is None
    assert gauge.choose("vae", Levers()) is None, "it is not on the device to stay"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((4.0, 1.0, 2.0, 3.0), "cudnn"), ((4.0, 3.0, 1.0, 2.0), "flash"), ((1.0, 1.0, 1.0, 1.0), "sdpa")],
)
def test_attention_is_timed_alone(seconds: tuple[float, ...], expected: str, loaded: Checkpoint) -> None:
    # as on CUDA without xformers: PyTorch's kernels stand in line behind each other, so each can be called on a CPU
    assert gauge_of(loaded, *seconds, device=CUDA).choose("attention", Levers()) == expected


@pytest.mark.parametrize(("seconds", "expected"), [((1.0, 0.5), "fp16"), ((0.5, 1.0), "fp32")])
def test_the_vae_is_halved_where_that_is_faster(
    seconds: tuple[float, float], expected: str, loaded: Checkpoint
) -> None:
    before = copy.deepcopy(loaded.vae.state_dict())
    assert gauge_of(loaded, *seconds, vae=loaded.vae).choose("vae", Levers()) == expected
    assert all(torch.equal(value, before[name]) for name, value in loaded.vae.state_dict().items())


def test_a_vae_that_is_wrong_in_half_precision_stays(loaded: Checkpoint) -> None:
    vae = copy.deepcopy(loaded.vae)
    vae.decoder.conv_out.weight.data.mul_(1e9)  # its output itself overflows, which no rescaling inside helps
    assert gauge_of(loaded, vae=vae).choose("vae", Levers()) == "fp32"


def test_a_vae_in_half_precision_already_is_not_measured(loaded: Checkpoint) -> None:
    assert gauge_of(loaded, vae=copy.deepcopy(loaded.vae).half()).choose("vae", Levers()) == "fp16"


def test_lack_of_memory_leaves_the_lever(loaded: Checkpoint) -> None:
    def clock(call: Callable[[], object]) -> float:
        raise torch.OutOfMemoryError("full")

    gauge = DeviceGauge(copy.deepcopy(loaded.unet), None, CPU, PROBE, clock=clock)
    assert gauge.choose("fused_qkv", Levers()) is None


def test_the_clock_counts_the_call() -> None:
    calls: list[int] = []
    assert device_clock(CPU)(lambda: calls.append(1)) >= 0
    assert calls == [1]
