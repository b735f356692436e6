"""What half precision, other kernels and the levers do to a picture, against float32 and against each other."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch

from inference.engine.attention import choose_attention
from inference.engine.compiling import FastUnet, call_with, twin_of
from inference.engine.decode import LatentDecoder
from inference.engine.gauge import Probe, halved, probe_inputs
from inference.engine.half_vae import FACTOR, rescale
from inference.engine.levers import Levers
from scripts.gpubench import accuracy

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.gpubench.contestants import Pixels
    from scripts.gpubench.sdxl import Models

    Record = Callable[[str, object], None]

SAME_UNET = {"cpu": 1e-4, "cuda": 1e-2}  # of float32 and of fp16 rounding, through some hundred layers


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.float() - right.float()).norm() / right.float().norm())


@torch.inference_mode()
def compare(models: Models, levers: Levers) -> float:
    """The relative difference that levers make to a UNet call, of a shape that has come often enough for a graph."""
    torch.manual_seed(0)
    inputs = probe_inputs(models.unet, Probe(models.size, models.size))
    plain = call_with(models.unet, inputs)
    unet = twin_of(models.unet)
    choose_attention(unet, levers.attention, models.device)
    fast = FastUnet(unet, levers)
    fast.prepare([inputs])
    found = [call_with(fast, inputs) for _ in range(3)]
    assert bool(found[-1].isfinite().all())
    # captured or not yet: `strict` pictures hang on it
    assert all(torch.equal(each, found[0]) for each in found), "the same call gives the same each time"
    if levers.cuda_graphs:
        assert fast.graphs == 1
    return relative(found[-1], plain)


def test_pictures_are_as_near_to_float32_as_their_precision_allows(
    models: Models, exact: Pixels, record_property: Record
) -> None:
    found = accuracy.check(models, Levers(), models.size, exact)
    record_property("relative error of the engine", f"{found['engine']:.2e}")
    record_property("relative error of stock", f"{found['stock']:.2e}")
    assert found["right"], found


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", "cudnn", "flash", "efficient", "xformers"])
def test_attention_kernels_agree(name: str, card_models: Models, record_property: Record) -> None:
    """Each kernel's sums have their twins in tests/inference/engine/test_attention.py."""
    if name == "xformers":
        pytest.importorskip("xformers.ops")
    error = compare(card_models, Levers(attention=name))
    record_property("relative difference", f"{error:.2e}")
    assert error <= SAME_UNET["cuda"]


def test_fused_projections_leave_the_picture_as_it_is(models: Models, record_property: Record) -> None:
    error = compare(models, Levers(fused_qkv=True))
    record_property("relative difference", f"{error:.2e}")
    assert error <= SAME_UNET[models.device.type]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "levers",
    [
        Levers(cuda_graphs=True),
        Levers(fused_qkv=True, cuda_graphs=True),
        Levers(compile="regional"),
        Levers(compile="regional", cuda_graphs=True),
    ],
    ids=str,
)
def test_levers_leave_the_picture_as_it_is(levers: Levers, card_models: Models, record_property: Record) -> None:
    """Which module is called when has its twins in tests/inference/engine/test_compiling.py and test_graphs.py."""
    error = compare(card_models, levers)
    record_property("relative difference", f"{error:.2e}")
    assert error <= SAME_UNET["cuda"]


def test_the_vae_gives_no_nan_where_it_would_overflow(models: Models, record_property: Record) -> None:
    vae = copy.deepcopy(models.vae).float()
    rescale(vae, 1 / FACTOR)  # larger inside by as much as the cure makes smaller, as SDXL's own weights are
    latents = torch.randn(1, 4, models.size // 8, models.size // 8, device=models.device)
    with torch.inference_mode():
        right = vae.decode(latents / vae.config.scaling_factor).sample
        half = halved(copy.deepcopy(vae))
        assert half is not None
        found = half.decode((latents / vae.config.scaling_factor).half()).sample
        assert bool(found.isfinite().all())
        record_property("relative error", f"{relative(found, right):.2e}")
        assert relative(found, right) < 0.02
        assert half.dtype == torch.float16
        assert LatentDecoder(half).decode(latents).shape == (1, models.size, models.size, 3)
        assert half.dtype == torch.float16, "the decoder had no reason to fall back to float32"
