from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from inference.engine.samplers import KINDS, Samplers, resolve_name, scale_inputs, step_all
from inference.engine.types import UnknownSchedulerError

ROOT = Path(__file__).resolve().parents[3]
TINY = json.loads((ROOT / "inference/checkpoints/tiny/scheduler/scheduler_config.json").read_text())
SDXL_BASE = {  # the settings that SDXL base 1.0 is published with
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
CPU = torch.device("cpu")


def predict(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """A stand-in for the UNet: any smooth function of its inputs does."""
    return torch.tanh(latents * 0.7 + timestep / 1000)


def run_ours(samplers: Samplers, names: list[tuple[str, int]], noise: torch.Tensor) -> torch.Tensor:
    """All pictures in one batch; those that are finished leave it."""
    made = [samplers.make(name, steps, CPU) for name, steps in names]
    generators = [torch.Generator().manual_seed(i) for i in range(len(made))]
    latents = [noise[i] * sampler.init_noise_sigma for i, sampler in enumerate(made)]
    while any(sampler.index < sampler.steps for sampler in made):
        active = [i for i, sampler in enumerate(made) if sampler.index < sampler.steps]
        chosen = [made[i] for i in active]
        stacked = torch.stack([latents[i] for i in active])
        scaled = scale_inputs(chosen, stacked)
        output = torch.stack(
            [predict(scaled[k], sampler.timesteps[sampler.index]) for k, sampler in enumerate(chosen)]
        )
        stepped = step_all(chosen, output, stacked, [generators[i] for i in active])
        for k, i in enumerate(active):
            latents[i] = stepped[k]
    return torch.stack(latents)


def run_stock(config: dict[str, Any], name: str, steps: int, noise: torch.Tensor, seed: int) -> torch.Tensor:
    """diffusers' own loop for one picture, as its pipelines write it."""
    kind = KINDS[name]
    clean = {key: value for key, value in config.items() if key not in ("_class_name", "use_karras_sigmas")}
    scheduler = kind.cls.from_config(clean, **kind.overrides)
    scheduler.set_timesteps(steps)
    latents = noise[None] * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(seed)
    for timestep in scheduler.timesteps:
        output = predict(scheduler.scale_model_input(latents, timestep), float(timestep))
        keywords = {} if name == "ddim" else {"generator": generator}
        latents = scheduler.step(output, timestep, latents, return_dict=False, **keywords)[0]
    return latents[0]


@pytest.mark.parametrize("config", [TINY, SDXL_BASE], ids=["v_prediction", "epsilon"])
@pytest.mark.parametrize("name", list(KINDS))
def test_equals_diffusers_own_loop(config: dict[str, Any], name: str) -> None:
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = run_ours(Samplers(config), [(name, 5), (name, 9), (name, 3)], noise)
    for i, steps in enumerate((5, 9, 3)):
        torch.testing.assert_close(ours[i], run_stock(config, name, steps, noise[i], i), rtol=1e-4, atol=1e-4)


def test_a_batch_of_different_schedulers_equals_each_alone() -> None:
    samplers = Samplers(TINY)
    names = [(name, 4 + i) for i, name in enumerate(KINDS)]
    noise = torch.randn(len(names), 4, 8, 8, generator=torch.Generator().manual_seed(2))
    together = run_ours(samplers, names, noise)
    for i, (name, steps) in enumerate(names):
        torch.testing.assert_close(together[i], run_stock(TINY, name, steps, noise[i], i), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_batched_euler_honours_the_prediction_type(kind: str) -> None:
    config = {**SDXL_BASE, "prediction_type": kind}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = run_ours(Samplers(config), [("euler", 6), ("euler", 6)], noise)
    torch.testing.assert_close(ours[0], run_stock(config, "euler", 6, noise[0], 0), rtol=1e-4, atol=1e-4)


def test_the_kinds_differ() -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    results = [run_ours(Samplers(TINY), [(name, 6)], noise) for name in KINDS]
    for i, first in enumerate(results):
        assert torch.isfinite(first).all()
        for second in results[i + 1 :]:
            assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("K_EULER", "euler"),
        ("Euler", "euler"),
        ("K_EULER_ANCESTRAL", "euler_a"),
        ("Euler a", "euler_a"),
        ("DDIM", "ddim"),
        ("DPMSolverMultistep", "dpmpp_2m"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        (" euler ", "euler"),
    ],
)
def test_aliases(given: str, ours: str) -> None:
    assert resolve_name(given) == ours


@pytest.mark.parametrize("given", ["", "PNDM", "euler; drop table", "None"])
def test_an_unknown_name_is_refused_and_the_known_are_named(given: str) -> None:
    with pytest.raises(UnknownSchedulerError, match="euler, euler_a, ddim"):
        resolve_name(given)


def test_samplers_do_not_share_state() -> None:
    samplers = Samplers(TINY)
    first = samplers.make("dpmpp_2m", 5, CPU)
    second = samplers.make("dpmpp_2m", 9, CPU)
    assert (first.steps, second.steps) == (5, 9)
    assert first.scheduler is not second.scheduler


def test_euler_is_the_checkpoints_own_class() -> None:
    assert Samplers(TINY).make("euler", 4, CPU).is_euler
    assert isinstance(Samplers(TINY).make("euler", 4, CPU).scheduler, EulerDiscreteScheduler)
