from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from inference.engine.canvas import (
    LatentEncoder,
    enlarge,
    enlarge_latents,
    enlarge_mask,
    keep_outside,
    latent_mask,
    to_pixels,
    to_planes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.engine.checkpoint import Checkpoint


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    draw = np.random.default_rng(3)
    small = draw.integers(0, 256, (12, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((72, 96), Image.Resampling.BICUBIC))


def test_pixels_come_back_from_planes(pixels: NDArray[np.uint8]) -> None:
    assert np.array_equal(to_pixels(to_planes(pixels)), pixels)


@pytest.mark.parametrize(("height", "width"), [(192, 144), (96, 72), (120, 72), (48, 36)])
def test_enlarging_is_lanczos(pixels: NDArray[np.uint8], height: int, width: int) -> None:
    made = enlarge(pixels, height, width)
    peer = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    # the other rounds to whole levels between the two axes
    assert made.shape == (height, width, 3)
    assert np.abs(made.astype(int) - peer.astype(int)).max() <= 2


def test_latents_are_enlarged_to_the_pictures_size() -> None:
    grown = enlarge_latents(torch.ones(4, 16, 12), 192, 160)
    assert grown.shape == (4, 24, 20)
    assert torch.allclose(grown, torch.ones_like(grown), atol=1e-5)


def test_a_latent_is_drawn_anew_where_any_of_its_pixels_is() -> None:
    mask = np.zeros((32, 24), np.uint8)
    mask[9, 17] = 1
    found = latent_mask(mask, torch.device("cpu"))
    assert found.shape == (1, 4, 3)
    assert found.sum() == 1
    assert found[0, 1, 2] == 1


def test_what_is_kept_is_kept_to_the_pixel(pixels: NDArray[np.uint8]) -> None:
    other = 255 - pixels
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[:10] = 255
    mask[10:20] = 128
    mixed = keep_outside(other, pixels, mask)
    assert np.array_equal(mixed[:10], other[:10])
    assert np.array_equal(mixed[20:], pixels[20:])
    assert np.abs(mixed[10:20].astype(int) - 127).max() <= 1


def test_masks_grow_with_their_pictures() -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    grown = enlarge_mask(mask, 32, 48)
    assert grown.shape == (32, 48)
    assert (grown[:, :20] == 0).all()
    assert (grown[:, 28:] == 255).all()


@torch.inference_mode()
def test_encoding_is_the_inverse_of_decoding(checkpoint: Checkpoint, tiny_picture: NDArray[np.uint8]) -> None:
    from inference.engine.decode import LatentDecoder

    latents = LatentEncoder(checkpoint.vae).encode(tiny_picture)
    assert latents.shape == (4, 16, 16)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, LatentEncoder(checkpoint.vae).encode(tiny_picture))
    again = LatentDecoder(checkpoint.vae).decode(latents[None])[0]
    assert np.abs(again.astype(int) - tiny_picture.astype(int)).mean() < 12
