from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inference.bounds import Bounds
from inference.engine.types import HiresPass, LoraUse, RefinerPass
from inference.inputs import InputPictures
from inference.plan import Plan, plan_job, random_seed
from inference.settings import InferenceSettings
from inference.styles import Styles
from models.errors import InvalidInputError
from models.wire import SEED_COUNT, JobInput
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUNDS = Bounds(64, 512, 128 * 512, 50, 4, max_hires_pixels=512 * 512)
ENGINE: FakeEngine


@pytest.fixture(autouse=True)
def engine() -> Iterator[FakeEngine]:
    global ENGINE  # noqa: PLW0603 - one for every test, so that plan() stays short
    ENGINE = FakeEngine()
    yield ENGINE
    ENGINE.close()


def plan(inputs: InputPictures | None = None, **fields: Any) -> Plan:
    wanted = JobInput.model_validate({"prompt": "a cat", **fields})
    return plan_job("job", wanted, ENGINE, BOUNDS, styles=Styles(), inputs=inputs, draw_seed=lambda: 7)


def problems(inputs: InputPictures | None = None, **fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        plan(inputs, **fields)
    return {problem.field: problem.reason for problem in caught.value.details}


def pictures(width: int = 72, height: int = 64, *, mask: bool = False) -> InputPictures:
    return InputPictures(
        np.zeros((height, width, 3), np.uint8), "a" * 64, np.zeros((height, width), np.uint8) if mask else None
    )


def test_what_is_not_sent_takes_the_checkpoints_default() -> None:
    first = plan().first
    assert (first.width, first.height, first.steps, first.guidance_scale) == (64, 64, 4, 3.0)
    assert (first.scheduler, first.negative_prompt, first.seed) == ("euler", "blurry", 7)
    assert (first.checkpoint, first.syntax, first.loras) == ("", "a1111", ())
    assert (first.init, first.hires, first.refiner) == (None, None, None)


def test_a_named_checkpoint_brings_its_own_defaults() -> None:
    first = plan(model="other").first
    assert (first.checkpoint, first.width, first.steps, first.guidance_scale) == ("other", 128, 2, 1.0)
    assert (first.scheduler, first.negative_prompt) == ("ddim", "")


def test_the_engines_own_checkpoint_by_name_is_no_other() -> None:
    assert plan(checkpoint="fake").first == plan().first


def test_an_empty_negative_prompt_means_none() -> None:
    assert plan(negative_prompt="").first.negative_prompt == ""


def test_guidance_zero_and_seed_zero_are_values() -> None:
    first = plan(guidance_scale=0, seed=0).first
    assert (first.guidance_scale, first.seed) == (0, 0)


def test_seeds_count_up_and_wrap() -> None:
    made = plan(seed=SEED_COUNT - 2, num_images=4)
    assert made.seeds == [SEED_COUNT - 2, SEED_COUNT - 1, 0, 1]
    assert {picture.prompt for picture in made.job.pictures} == {"a cat"}


def test_random_seeds_use_all_32_bits() -> None:
    seeds = [random_seed() for _ in range(200)]
    assert all(0 <= seed < SEED_COUNT for seed in seeds)
    assert max(seeds) > 2**31
    assert len(set(seeds)) > 190


def test_every_wrong_field_is_named_at_once() -> None:
    wrong = problems(
        mask="AAAA",
        width=1024,
        num_inference_steps=99,
        num_images=9,
        scheduler="heun",
        checkpoint="nope",
        style=["cinematic", "nope"],
        loras=[{"name": "red"}, {"name": "nope"}],
        refiner="nope",
        high_noise_frac=1.0,
        refiner_inference_steps=0,
        hires={"scale": 4.0},
    )
    assert list(wrong) == [
        "checkpoint",
        "style",
        "width",
        "num_inference_steps",
        "num_images",
        "mask",
        "hires",
        "hires.steps",
        "refiner",
        "refiner_inference_steps",
        "high_noise_frac",
        "loras.1.name",
        "scheduler",
    ]
    assert "euler" in wrong["scheduler"]
    assert "fake-refiner" in wrong["refiner"]


def test_the_place_in_the_body_stands_before_each_field() -> None:
    with pytest.raises(InvalidInputError) as caught:
        plan_job("job", JobInput(prompt="x", num_images=9), ENGINE, BOUNDS, prefix=("input",))
    assert caught.value.message == "input.num_images: must be at most 4 on this server"


def test_another_name_of_a_scheduler_is_no_fault_beside_others() -> None:
    assert set(problems(scheduler=" K_EULER", width=1024)) == {"width"}


def test_the_area_is_bounded_apart_from_the_sides() -> None:
    assert set(problems(width=512, height=136)) == {"width", "height"}
    assert plan(width=512, height=128).first.width == 512


def test_fields_without_effect_are_listed() -> None:
    assert plan(strength=0.5, high_noise_frac=0.8, quality=5).ignored == ("strength", "high_noise_frac", "quality")
    assert plan(negative_prompt="x", guidance_scale=1).ignored == ("negative_prompt",)
    assert plan(negative_prompt="x", guidance_scale=1.1).ignored == ()


def test_styles_are_laid_around_both_prompts() -> None:
    first = plan(style=["cinematic"], negative_prompt="dogs").first
    assert first.prompt.startswith("film still of a cat, ")
    assert first.negative_prompt.startswith("dogs, ")


def test_a_style_that_makes_a_prompt_endless_is_refused(tmp_path: Any) -> None:
    (tmp_path / "styles.json").write_text('{"more": {"prompt": "' + "{prompt} " * 200 + '"}}')
    wanted = JobInput(prompt="x" * 900, style=("more",))
    with pytest.raises(InvalidInputError, match="more than 20000 characters"):
        plan_job("job", wanted, ENGINE, BOUNDS, styles=Styles(tmp_path))


def test_loras_and_syntax_go_to_the_engine() -> None:
    first = plan(loras=[{"name": "red", "scale": -1}, {"name": "blue"}], prompt_syntax="plain").first
    assert first.loras == (LoraUse("red", -1.0), LoraUse("blue", 1.0))
    assert first.syntax == "plain"


# ---- pictures


def test_a_picture_gives_size_and_strength() -> None:
    first = plan(pictures(), image="AAAA").first
    assert (first.width, first.height) == (72, 64)
    assert first.init is not None
    assert (first.init.strength, first.init.mask) == (0.75, None)
    masked = plan(pictures(mask=True), image="AAAA", mask="AAAA", strength=1.0).first
    assert masked.init is not None
    assert masked.init.mask is not None
    assert masked.init.strength == 1.0


def test_a_strength_of_nothing_is_refused_with_a_picture_alone() -> None:
    assert set(problems(image="AAAA", strength=0)) == {"strength"}
    assert plan(strength=0).ignored == ("strength",)


def test_a_mask_needs_a_picture() -> None:
    assert problems(mask="AAAA") == {"mask": "needs an image"}


def test_before_the_picture_is_read_only_what_was_named_is_judged() -> None:
    assert set(problems(image="https://a.example/b.png", width=1024)) == {"width"}
    assert set(problems(image="https://a.example/b.png", scheduler="nope")) == {"scheduler"}
    assert plan(image="https://a.example/b.png", hires={"scale": 4.0}).first.hires is None


# ---- hires


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, HiresPass(128, 128, 4, 0.5, "lanczos")),
        ({"scale": 1.5, "steps": 9, "strength": 0.3}, HiresPass(96, 96, 9, 0.3, "lanczos")),
        ({"width": 256, "upscaler": "latent"}, HiresPass(256, 256, 4, 0.7, "latent")),
        ({"width": 128, "height": 96}, HiresPass(128, 96, 4, 0.5, "lanczos")),
        ({"scale": 1.55}, HiresPass(96, 96, 4, 0.5, "lanczos")),
    ],
)
def test_hires(asked: dict[str, Any], expected: HiresPass) -> None:
    assert plan(hires=asked).first.hires == expected


@pytest.mark.parametrize(
    ("asked", "field", "reason"),
    [
        ({"scale": 1.01}, "hires", "64x64 is not larger than the picture's 64x64"),
        ({"width": 128, "height": 64, "steps": 51}, "hires.steps", "at most 50"),
        ({"width": 4096, "height": 72}, "hires", "at most 262144 pixels"),
    ],
)
def test_hires_out_of_bounds(asked: dict[str, Any], field: str, reason: str) -> None:
    assert reason in problems(hires=asked)[field]


def test_hires_is_never_bounded_below_the_pictures_own_size() -> None:
    assert Bounds.of(InferenceSettings(max_pixels=16_000_000)).max_hires_pixels == 16_000_000


def test_hires_enlarges_what_was_drawn_over_too() -> None:
    first = plan(pictures(mask=True), image="AA", mask="AA", hires={}).first
    assert (first.hires and first.hires.width, first.width) == (144, 72)


# ---- refiner


def test_a_refiner_takes_what_is_not_named_from_the_picture() -> None:
    assert plan(refiner="fake-refiner").first.refiner == RefinerPass("fake-refiner", 4, 0.8, "blurry")
    named = plan(
        refiner="fake-refiner", refiner_inference_steps=9, high_noise_frac=0.5, refiner_negative_prompt=""
    ).first.refiner
    assert named == RefinerPass("fake-refiner", 9, 0.5, "")


def test_a_checkpoint_is_no_refiner() -> None:
    assert set(problems(refiner="other")) == {"refiner"}


# ---- the rest


def test_the_file_is_as_asked() -> None:
    file = plan(format="jpg", quality=33, metadata=False).file
    assert (file.format, file.quality, file.metadata) == ("jpeg", 33, False)
    assert (plan().file.format, plan().file.quality, plan().file.metadata) == ("png", 90, True)


def test_previews_and_the_deadline_go_to_the_engine() -> None:
    job = plan(preview_every=3, deadline_s=2.5).job
    assert (job.preview_every, job.start_within_s) == (3, 2.5)


def test_the_steps_of_every_pass_count() -> None:
    assert plan(num_images=2, hires={"steps": 3}, refiner="fake-refiner", refiner_steps=5).steps == 2 * (4 + 3 + 5)
