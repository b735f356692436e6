from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKL

from inference.engine.decode import LatentDecoder
from inference.engine.memory import MemoryKeeper, MemoryNeeds, choose_mode, free_bytes, needs_of

if TYPE_CHECKING:
    from inference.engine.checkpoint import Checkpoint

CPU = torch.device("cpu")
GIB = 2**30
NEEDS = MemoryNeeds(weights=7 * GIB, waiting=2 * GIB, largest_waiting=GIB, step=GIB, decode=4 * GIB, decode_tile=GIB)


@pytest.mark.parametrize(
    ("free", "mode"),
    [(None, "resident"), (24.0, "resident"), (12.0, "resident"), (11.0, "tiled"), (8.8, "tiled"), (8.5, "offload")],
)
def test_auto_takes_the_fastest_mode_that_fits(free: float | None, mode: str) -> None:
    assert choose_mode("auto", None if free is None else int(free * GIB), NEEDS) == mode


@pytest.mark.parametrize("mode", ["resident", "tiled", "offload"])
def test_a_mode_asked_for_is_taken(mode: str) -> None:
    assert choose_mode(mode, GIB, NEEDS) == mode
    assert choose_mode(mode, None, NEEDS) == mode


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'low' is not one of auto, resident, tiled, offload"):
        choose_mode("low", None, NEEDS)


def test_a_cpu_has_no_memory_of_its_own() -> None:
    assert free_bytes(CPU) is None


def test_needs_count_the_weights_and_grow_with_the_work(checkpoint: Checkpoint) -> None:
    def needs(**changes: int) -> MemoryNeeds:
        size = {"height": 128, "width": 128, "rows": 2, **changes}
        return needs_of(checkpoint.unet, checkpoint.text_encoders, checkpoint.vae, **size)

    small = needs()
    counted = sum(
        tensor.numel() * tensor.element_size()
        for module in (checkpoint.unet, *checkpoint.text_encoders, checkpoint.vae)
        for tensor in (*module.parameters(), *module.buffers())
    )
    assert small.weights == counted
    assert needs(rows=4).step == 2 * small.step
    assert needs(pictures=3).decode == 3 * small.decode
    large = needs(height=1024, width=1024)
    assert large.decode == 64 * small.decode
    assert large.decode_tile == 16 * small.decode_tile  # no more than one tile
    assert large.resident > large.tiled > large.offload


@pytest.fixture
def vae(checkpoint: Checkpoint) -> Any:
    """A VAE of one's own, since the modes change it."""
    mine = AutoencoderKL.from_config(checkpoint.vae.config)
    mine.load_state_dict(checkpoint.vae.state_dict())
    return mine.requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("mode", ["resident", "tiled"])
def test_nothing_moves_unless_it_is_offloaded(vae: Any, mode: Any) -> None:
    keeper = MemoryKeeper([torch.nn.Linear(1, 1)], vae, mode, CPU)
    with keeper.text(), keeper.vae():
        pass
    assert keeper.moves == 0
    assert vae.use_tiling == (mode == "tiled")
    assert vae.use_slicing == (mode == "tiled")


def test_offloaded_modules_come_for_their_work_alone(vae: Any) -> None:
    keeper = MemoryKeeper([torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)], vae, "offload", CPU)
    with keeper.text():
        assert keeper.moves == 2
        with keeper.text():  # nested: they are there already
            assert keeper.moves == 2
        assert keeper.moves == 2
    assert keeper.moves == 4
    with keeper.vae():
        assert keeper.moves == 5
    assert keeper.moves == 6


def test_offloaded_modules_wait_in_host_memory_even_after_a_failure(vae: Any) -> None:
    """The meta device stands for the accelerator: what is moved there can be seen to be."""
    encoder = torch.nn.Linear(1, 1)
    keeper = MemoryKeeper([encoder], vae, "offload", CPU)
    seen = []
    encoder.to = lambda where: seen.append(str(where)) or encoder  # type: ignore[assignment, method-assign, func-returns-value]
    keeper._device = torch.device("meta")
    with pytest.raises(RuntimeError, match="out of memory"), keeper.text():
        raise RuntimeError("out of memory")
    assert seen == ["meta", "cpu"]


@torch.inference_mode()
def test_a_tiled_decode_of_a_large_picture_is_close_to_the_whole_one(checkpoint: Checkpoint, vae: Any) -> None:
    """Tiles have group norms of their own, so that the colours may shift a little."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 4, 6, 6, generator=generator)
    latents = torch.nn.functional.interpolate(coarse, (80, 80), mode="bilinear")  # 640x640, four tiles
    whole = LatentDecoder(checkpoint.vae).decode(latents)[0].astype(int)
    MemoryKeeper([], vae, "tiled", CPU)
    tiled = LatentDecoder(vae).decode(latents)[0].astype(int)
    assert tiled.shape == whole.shape
    difference = abs(tiled - whole)
    assert difference.mean() < 4
    assert difference.max() < 64


@torch.inference_mode()
def test_tiling_leaves_a_picture_of_one_tile_as_it_is(checkpoint: Checkpoint, vae: Any) -> None:
    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    whole = LatentDecoder(checkpoint.vae).decode(latents)
    MemoryKeeper([], vae, "tiled", CPU)
    assert abs(LatentDecoder(vae).decode(latents).astype(int) - whole.astype(int)).max() <= 1
