"""LoRAs, refiners and previews through the whole engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from inference.engine.loaded import Loaded
from inference.engine.loras import LoraShelf
from inference.engine.source import CheckpointSource
from inference.engine.types import (
    Completed,
    Failed,
    LoraUse,
    Previewed,
    Progressed,
    RefinerPass,
    UnknownCheckpointError,
    UnknownLoraError,
)
from tests.inference.engine.conftest import CHECKPOINTS
from tests.support.checkpoints import save_epsilon_copy, save_tiny_refiner
from tests.support.loras import save_lora

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint


def distance(first: Any, second: Any) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> LoraShelf:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("sketch", "neon", "words"), 1):
        wanted = (lambda part, _path: part != "unet") if name == "words" else None
        save_lora(folder / f"{name}.safetensors", checkpoint, seed, wanted=wanted)
    (folder / "broken.safetensors").write_bytes(b"not at all")
    return LoraShelf(folder, keep_bytes=50_000_000)


# ---- LoRAs


def test_a_lora_acts_on_its_own_picture_alone(make_driver: Any, make_spec: Any, shelf: LoraShelf) -> None:
    driver = make_driver(shelf=shelf)
    plain = driver.draw(make_spec(), strict=True)
    assert plain.last.loras == ()
    uses = {name: (LoraUse(name, 1.0),) for name in ("sketch", "neon", "words")}
    alone = {name: driver.draw(make_spec(loras=use), strict=True) for name, use in uses.items()}
    assert [used.name for used in alone["neon"].last.loras] == ["neon"]
    assert len(alone["neon"].last.loras[0].sha256) == 64
    pictures = [plain.picture, *(outcome.picture for outcome in alone.values())]
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert distance(first, second) > 3
    assert np.array_equal(driver.draw(make_spec(), strict=True).picture, plain.picture)
    together = driver.draw_together([make_spec(), *(make_spec(loras=use) for use in uses.values())])
    for outcome, one in zip(together, pictures, strict=True):
        assert distance(outcome.picture, one) <= 1


def test_scale_and_company_matter(make_driver: Any, make_spec: Any, shelf: LoraShelf) -> None:
    driver = make_driver(shelf=shelf)
    plain = driver.draw(make_spec(), strict=True).picture
    nothing = driver.draw(make_spec(loras=(LoraUse("neon", 0.0),)), strict=True).picture
    assert distance(plain, nothing) <= 1
    one = driver.draw(make_spec(loras=(LoraUse("neon", 1.0),)), strict=True).picture
    both = driver.draw(make_spec(loras=(LoraUse("neon", 1.0), LoraUse("sketch", 0.5))), strict=True).picture
    turned = driver.draw(make_spec(loras=(LoraUse("sketch", 0.5), LoraUse("neon", 1.0))), strict=True).picture
    assert distance(one, both) > 3
    assert distance(both, turned) <= 1


def test_what_cannot_be_used_is_said(make_driver: Any, make_spec: Any, shelf: LoraShelf, driver: Any) -> None:
    with_shelf = make_driver(shelf=shelf)
    assert set(with_shelf.engine.loras()) == {"sketch", "neon", "words", "broken"}
    for name in ("nothing", "../neon", "/etc/passwd"):
        with pytest.raises(UnknownLoraError):
            with_shelf.start(make_spec(loras=(LoraUse(name),)))
    with pytest.raises(UnknownLoraError):
        driver.start(make_spec(loras=(LoraUse("neon"),)))
    bad, good = with_shelf.draw_together([make_spec(loras=(LoraUse("broken"),)), make_spec()])
    assert isinstance(good.last, Completed)
    assert isinstance(bad.last, Failed)
    assert bad.last.error.code == "lora_error"


# ---- refiners


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSource:
    root = tmp_path_factory.mktemp("checkpoints")
    save_tiny_refiner(root / "polish")
    save_epsilon_copy(root / "noisy")
    return CheckpointSource("tiny", None, (CHECKPOINTS, root), device="cpu")


def test_a_refiner_draws_the_end_of_the_schedule(
    make_driver: Any, make_spec: Any, source: CheckpointSource, checkpoint: Checkpoint
) -> None:
    driver = make_driver(source=source)
    assert driver.engine.refiners() == ("polish",)
    plain = driver.draw(make_spec(steps=10))
    outcome = driver.draw(make_spec(steps=10, refiner=RefinerPass("polish", 10, 0.8)))
    assert outcome.last.refiner.checkpoint == "polish"
    assert plain.last.refiner is None
    assert distance(outcome.picture, plain.picture) > 3
    last = [event for event in outcome.events if isinstance(event, Progressed)][-1]
    assert (last.step, last.steps) == (10, 10)
    tight = make_driver(source=source, budget_bytes=checkpoint.weight_bytes)
    specs = [make_spec(steps=6, seed=seed, refiner=RefinerPass("polish", 6, 0.7)) for seed in range(3)]
    roomy = driver.draw_together(specs)
    for one, two in zip(roomy, tight.draw_together(specs), strict=True):
        assert distance(one.picture, two.picture) <= 1


def test_a_refiner_equals_the_stock_pipelines(
    make_driver: Any, make_spec: Any, tiny_folder: str, source: CheckpointSource, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    driver = make_driver(source=source)
    made = driver.draw(make_spec(steps=10, seed=3, refiner=RefinerPass("polish", 10, 0.7, "grey"))).picture
    base = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(save_tiny_refiner(tmp_path / "polish"))
    for pipeline in (base, refiner):
        pipeline.set_progress_bar_config(disable=True)
    common = {"prompt": "a red circle on a blue background", "num_inference_steps": 10, "guidance_scale": 3.0}
    latents = base(
        **common,
        negative_prompt="",
        width=128,
        height=128,
        denoising_end=0.7,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    stock = refiner(**common, negative_prompt="grey", image=latents, denoising_start=0.7, output_type="np").images[0]
    assert distance(made, (stock * 255).round().astype(np.uint8)) <= 1


def test_a_refiner_is_no_checkpoint_to_begin_with(make_driver: Any, make_spec: Any, source: CheckpointSource) -> None:
    driver = make_driver(source=source)
    with pytest.raises(UnknownCheckpointError, match="refiner"):
        driver.start(make_spec(checkpoint="polish"))
    with pytest.raises(UnknownCheckpointError, match="base"):
        driver.start(make_spec(refiner=RefinerPass("noisy", 4)))
    assert "polish" not in driver.engine.checkpoints()


# ---- previews


@pytest.mark.parametrize("scheduler", ["euler", "ddim", "dpmpp_2m_sde", "unipc"])
def test_previews_come_to_resemble_the_picture(driver: Any, make_spec: Any, scheduler: str) -> None:
    outcome = driver.draw(make_spec(steps=9, scheduler=scheduler), make_spec(steps=9, seed=8), previews=3)
    previews = [event for event in outcome.events if isinstance(event, Previewed)]
    assert [event.seq for event in previews] == list(range(1, len(previews) + 1))
    mine = [event for event in previews if event.index == 0]
    assert [(event.step, event.steps) for event in mine] == [(3, 9), (6, 9), (9, 9)]
    assert all(event.pixels.shape == (16, 16, 3) and event.pixels.dtype == np.uint8 for event in mine)
    small = outcome.pictures[0].reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    apart = [np.abs(event.pixels.astype(float) - small).mean() for event in mine]
    assert apart[-1] < 16
    assert apart[-1] <= apart[0]


def test_previews_change_nothing(driver: Any, make_spec: Any) -> None:
    plain = driver.draw(make_spec(), strict=True).picture
    assert np.array_equal(driver.draw(make_spec(), strict=True, previews=1).picture, plain)
    assert not any(isinstance(event, Previewed) for event in driver.draw(make_spec()).events)


@torch.inference_mode()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_clean_latents_are_found_in_every_prediction(checkpoint: Checkpoint, prediction: str) -> None:
    loaded = Loaded(checkpoint)

    class AtAStep:
        prediction_type = prediction

    clean, noise = torch.randn(4, 8, 8), torch.randn(4, 8, 8)
    signal = loaded._alphas[400]
    noisy = signal**0.5 * clean + (1 - signal) ** 0.5 * noise
    said = {"epsilon": noise, "v_prediction": signal**0.5 * noise - (1 - signal) ** 0.5 * clean, "sample": clean}
    found = loaded.clean(AtAStep(), noisy, said[prediction], 400.0)  # type: ignore[arg-type]
    assert torch.allclose(found, clean, atol=1e-4)
