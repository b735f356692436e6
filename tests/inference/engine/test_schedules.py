from __future__ import annotations

import logging
from typing import Any

import pytest
from diffusers import PNDMScheduler

from inference.engine.schedulers import KINDS
from inference.engine.schedules import own_scheduler, plms_from, read_schedule, template

CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "timestep_spacing": "trailing",
}


def test_a_template_is_left_as_it_was_by_those_made_from_it() -> None:
    for kind in KINDS.values():
        shared = template(kind, CONFIG)
        before = {key: str(value) for key, value in vars(shared).items()}
        mine = own_scheduler(shared, 5)
        assert {key: str(value) for key, value in vars(shared).items()} == before
        assert mine.betas is shared.betas  # the large tables are shared


def test_settings_of_another_class_are_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    odd = {
        **CONFIG,
        "interpolation_type": "linear",
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "_class_name": "X",
    }
    with caplog.at_level(logging.WARNING):
        for kind in KINDS.values():
            template(kind, odd)
    assert not caplog.records


@pytest.mark.parametrize("name", list(KINDS))
def test_a_schedule_says_how_noisy_the_latents_are_at_each_call(name: str) -> None:
    kind = KINDS[name]
    schedule = read_schedule(own_scheduler(template(kind, CONFIG), 6), kind, 6)
    shares = [noise / kept for kept, noise in schedule.levels]
    assert len(shares) == len(schedule.timesteps)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(14.6, abs=0.1)
    assert (schedule.steps, schedule.train_timesteps) == (6, 1000)


def test_rows_are_reckoned_once() -> None:
    kind = KINDS["dpmpp_2m"]
    schedule = read_schedule(own_scheduler(template(kind, CONFIG), 6), kind, 6)
    assert schedule.row(2, 1) is schedule.row(2, 5)
    assert schedule.row(2, 0) != schedule.row(2, 1)


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "unipc", "lms", "pndm", "heun"])
def test_the_timestep_below_zero_that_rounding_adds_is_taken_out(name: str) -> None:
    scheduler = own_scheduler(template(KINDS[name], CONFIG), 61)
    timesteps = [float(value) for value in scheduler.timesteps]
    assert min(timesteps) >= 0
    assert len(set(timesteps)) == 61
    if hasattr(scheduler, "sigmas"):
        assert float(scheduler.sigmas[-1]) == 0
        assert len(scheduler.sigmas) == len(timesteps) + 1


def test_plms_begins_late_with_its_second_timestep_twice() -> None:
    scheduler = own_scheduler(template(KINDS["pndm"], CONFIG), 5)
    assert isinstance(scheduler, PNDMScheduler)
    assert scheduler.timesteps.tolist() == [999, 799, 799, 599, 399, 199]
    plms_from(scheduler, 2)
    assert scheduler.timesteps.tolist() == [599, 399, 399, 199]
    plms_from(scheduler, 2)
    assert scheduler.timesteps.tolist() == [199]
