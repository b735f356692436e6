from __future__ import annotations

from typing import Any

import pytest

from inference.plan import Bounds, Plan, plan_job, random_seed
from models.errors import InvalidInputError
from models.wire import SEED_COUNT, JobInput
from tests.support.fake_engine import DEFAULT_INFO

BOUNDS = Bounds(min_side=64, max_side=512, max_pixels=128 * 512, max_steps=50, max_images=4)


def plan(**fields: Any) -> Plan:
    return plan_job("job", JobInput(prompt="a cat", **fields), DEFAULT_INFO, BOUNDS, draw_seed=lambda: 7)


def test_what_is_not_sent_takes_the_checkpoints_default() -> None:
    first = plan().first
    assert (first.width, first.height, first.steps, first.guidance_scale) == (64, 64, 4, 3.0)
    assert (first.scheduler, first.negative_prompt, first.seed) == ("euler", "blurry", 7)


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
    with pytest.raises(InvalidInputError) as caught:
        plan_job(
            "job",
            JobInput(
                prompt="x",
                width=1024,
                num_inference_steps=99,
                num_images=9,
                image_url="http://example.org/a.png",
                scheduler="heun",
            ),
            DEFAULT_INFO,
            BOUNDS,
            prefix=("input",),
        )
    fields = [problem.field for problem in caught.value.details]
    assert fields == [
        "input.image_url",
        "input.width",
        "input.num_inference_steps",
        "input.num_images",
        "input.scheduler",
    ]
    assert "img2img is not available" in caught.value.message
    assert "euler" in caught.value.details[-1].reason


def test_another_name_of_a_scheduler_is_no_fault_beside_others() -> None:
    with pytest.raises(InvalidInputError) as caught:
        plan(scheduler=" K_EULER", width=1024)
    assert {problem.field for problem in caught.value.details} == {"width"}


def test_the_area_is_bounded_apart_from_the_sides() -> None:
    with pytest.raises(InvalidInputError) as caught:
        plan(width=512, height=136)
    assert {problem.field for problem in caught.value.details} == {"width", "height"}
    assert plan(width=512, height=128).first.width == 512


def test_fields_without_effect_are_listed() -> None:
    assert plan(strength=0.5, high_noise_frac=0.8).ignored == ("strength", "high_noise_frac")
