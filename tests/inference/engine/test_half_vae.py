from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from inference.engine.checkpoint import load_checkpoint
from inference.engine.gauge import halved
from inference.engine.half_vae import rescale
from tests.support.checkpoints import CATALOGUE


@pytest.fixture
def vae() -> Any:
    return copy.deepcopy(load_checkpoint("tiny", None, (CATALOGUE,), device="cpu").vae)


@torch.inference_mode()
def both_ways(vae: Any, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 4, 8, 8, generator=generator).to(vae.dtype)
    pixels = torch.rand(1, 3, 64, 64, generator=generator).mul(2).sub(1).to(vae.dtype)
    return vae.decode(latents).sample.float(), vae.encode(pixels).latent_dist.mode().float()


def test_pictures_are_what_they_were(vae: Any) -> None:
    before = both_ways(vae)
    rescale(vae)
    for old, new in zip(before, both_ways(vae), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_a_vae_that_overflows_does_not_any_more(vae: Any) -> None:
    rescale(vae, 2.0**15)  # the other way round: as large inside as SDXL's own, and larger
    exact = both_ways(vae)
    plain = both_ways(copy.deepcopy(vae).half())
    assert not all(bool(tensor.isfinite().all()) for tensor in plain), "or this shows nothing"
    rescale(vae, 2.0**-10)
    half = halved(vae)
    assert half is not None
    assert half.dtype == torch.float16
    for old, new in zip(exact, both_ways(half), strict=True):
        assert float((new - old).norm() / old.norm()) < 0.02


def test_a_vae_of_another_make_is_left_as_it_is(vae: Any) -> None:
    before = copy.deepcopy(vae.state_dict())
    vae.decoder.up_blocks[-1].resnets[-1].norm2 = torch.nn.Identity()
    with pytest.raises(ValueError, match="normalised"):
        rescale(vae)
    after = vae.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert halved(vae) is None
