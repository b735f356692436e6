"""Pictures that begin with a picture, and pictures in several passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from inference.engine.canvas import LatentEncoder, enlarge
from inference.engine.passes import passes_of
from inference.engine.slots import PassKind
from inference.engine.types import Completed, HiresPass, InitPicture, PictureDone, Progressed, RefinerPass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.engine.checkpoint import Checkpoint

SCHEDULERS = {"euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}


def distance(first: Any, second: Any) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


def mean_distance(first: Any, second: Any) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


@pytest.fixture
def half_mask() -> NDArray[np.uint8]:
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 255
    return mask


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_a_picture_from_a_picture_equals_the_stock_pipeline(  # noqa: PLR0917 - fixtures
    driver: Any,
    make_spec: Any,
    tiny_folder: str,
    checkpoint: Checkpoint,
    tiny_picture: Any,
    scheduler: str,
    strength: float,
) -> None:
    init = InitPicture(tiny_picture, strength)
    made = driver.draw(make_spec(steps=8, init=init, scheduler=scheduler, seed=11)).picture
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(tiny_folder)
    overrides = {"euler_at_final": True} if scheduler == "dpmpp_2m" else {}
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config, **overrides)
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        latents = LatentEncoder(checkpoint.vae).encode(tiny_picture)[None]
    stock = pipeline(
        prompt="a red circle on a blue background",
        negative_prompt="",
        image=latents,
        strength=strength,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(11),
        output_type="np",
    ).images[0]
    assert distance(made, (stock * 255).round().astype(np.uint8)) <= 1


def test_strength_says_how_much_is_drawn_anew(driver: Any, make_spec: Any, tiny_picture: Any) -> None:
    outcomes = [
        driver.draw(make_spec(steps=10, init=InitPicture(tiny_picture, strength))) for strength in (0.1, 0.5, 1.0)
    ]
    distances = [mean_distance(outcome.picture, tiny_picture) for outcome in outcomes]
    assert distances == sorted(distances)
    assert distances[0] < distances[2] / 1.5
    steps = [max(event.step for event in outcome.events if isinstance(event, Progressed)) for outcome in outcomes]
    assert steps == [1, 5, 10]


def test_inpainting_keeps_what_the_mask_leaves_out(
    driver: Any, make_spec: Any, tiny_picture: Any, half_mask: Any
) -> None:
    init = InitPicture(tiny_picture, 1.0, half_mask)
    made = driver.draw(make_spec(steps=8, init=init, prompt="a blue circle on a red background")).picture
    assert np.array_equal(made[:, :64], tiny_picture[:, :64])
    assert mean_distance(made[:, 64:], tiny_picture[:, 64:]) > 20


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_equals_the_stock_pipeline_where_it_draws(  # noqa: PLR0917 - fixtures
    driver: Any, make_spec: Any, tiny_folder: str, tiny_picture: Any, half_mask: Any, strength: float
) -> None:
    made = driver.draw(make_spec(steps=8, init=InitPicture(tiny_picture, strength, half_mask), seed=5)).picture
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    # the stock pipeline samples the VAE's distribution, drawing from the generator before the noise
    vae, encode = pipeline.vae, pipeline.vae.encode

    def at_the_mode(picture: Any, *args: Any, **keywords: Any) -> Any:
        found = encode(picture, *args, **keywords)
        found.latent_dist.sample = lambda *_args, **_keywords: found.latent_dist.mode()
        return found

    vae.encode = at_the_mode
    stock = pipeline(
        prompt="a red circle on a blue background",
        negative_prompt="",
        image=torch.from_numpy(tiny_picture.copy()).permute(2, 0, 1)[None].float() / 255,
        mask_image=torch.from_numpy(half_mask)[None, None].float() / 255,
        height=128,
        width=128,
        strength=strength,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    drawn = (stock * 255).round().astype(np.uint8)
    assert distance(made[:, 64:], drawn[:, 64:]) <= 1


def test_pictures_of_every_kind_together_equal_each_alone(
    driver: Any, make_spec: Any, tiny_picture: Any, half_mask: Any
) -> None:
    specs = [
        make_spec(seed=1),
        make_spec(seed=2, init=InitPicture(tiny_picture, 0.6)),
        make_spec(seed=3, init=InitPicture(tiny_picture, 0.9, half_mask), scheduler="euler_a"),
        make_spec(seed=4, hires=HiresPass(192, 192, 4, 0.5)),
        make_spec(seed=5, hires=HiresPass(160, 160, 4, 0.6, "latent"), scheduler="dpmpp_2m_sde"),
        make_spec(seed=6, prompt="(red circle:1.4) on a [blue] background"),
        make_spec(seed=7, prompt="red circle " * 60),
    ]
    together = driver.draw_together(specs)
    for one, outcome in zip(specs, together, strict=True):
        assert distance(outcome.picture, driver.draw(one).picture) <= 1
    strict = driver.draw_together(specs, strict=True)
    for one, outcome in zip(specs, strict, strict=True):
        assert distance(outcome.picture, driver.draw(one, strict=True).picture) == 0


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
def test_a_second_pass_makes_the_same_picture_larger(driver: Any, make_spec: Any, upscaler: Any) -> None:
    small = driver.draw(make_spec(steps=8)).picture
    outcome = driver.draw(make_spec(steps=8, hires=HiresPass(192, 192, 6, 0.4, upscaler)))
    assert outcome.picture.shape == (192, 192, 3)
    assert mean_distance(outcome.picture, enlarge(small, 192, 192)) < 30
    last = [event for event in outcome.events if isinstance(event, Progressed)][-1]
    assert (last.step, last.steps) == (10, 10)


def test_inpainted_and_enlarged(driver: Any, make_spec: Any, tiny_picture: Any, half_mask: Any) -> None:
    init = InitPicture(tiny_picture, 0.9, half_mask)
    made = driver.draw(make_spec(init=init, hires=HiresPass(256, 256, 4, 0.4))).picture
    assert np.array_equal(made[:, :120], enlarge(tiny_picture, 256, 256)[:, :120])


def test_passes_are_known_beforehand(make_spec: Any) -> None:
    assert passes_of(make_spec()) == [PassKind.BASE]
    rich = make_spec(hires=HiresPass(256, 256, 10, 0.3), refiner=RefinerPass("r", 10, 0.8))
    assert passes_of(rich) == [PassKind.BASE, PassKind.REFINER, PassKind.HIRES]


def test_a_job_of_several_pictures_goes_through_its_passes(driver: Any, make_spec: Any) -> None:
    hires = HiresPass(160, 160, 4, 0.5)
    outcome = driver.draw(*(make_spec(seed=seed, hires=hires) for seed in (1, 2, 3)))
    assert isinstance(outcome.last, Completed)
    assert sorted(event.index for event in outcome.events if isinstance(event, PictureDone)) == [0, 1, 2]
    for index, seed in enumerate((1, 2, 3)):
        assert distance(outcome.pictures[index], driver.draw(make_spec(seed=seed, hires=hires)).picture) <= 1
