from __future__ import annotations

import inspect
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from inference.engine.checkpoint import load_checkpoint
from inference.engine.samplers import KEPT_SCHEDULES, KINDS, Sampler, Samplers, scale_inputs, step_all
from inference.engine.types import UnknownSchedulerError
from tests.support.checkpoints import copy_tiny, edit_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference.engine.checkpoint import Checkpoint

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
    "skip_prk_steps": True,
}
CPU = torch.device("cpu")
CONFIGS = {"v_zero_snr": TINY, "epsilon": SDXL_BASE, "v": {**SDXL_BASE, "prediction_type": "v_prediction"}}
SAMPLERS = {label: Samplers(config) for label, config in CONFIGS.items()}
ALLOWED = [(label, name) for label, samplers in SAMPLERS.items() for name in samplers.names]
# diffusers' own LMS needs scipy; its formula is in test_solvers.py
STOCK = [(label, name) for label, name in ALLOWED if name != "lms"]
NEEDS_ZERO_SNR = ("heun", "pndm", "dpmpp_singlestep", "lms")


def predict(latents: torch.Tensor, timestep: float) -> torch.Tensor:
    """A stand-in for the UNet: any smooth function of its inputs does."""
    return torch.tanh(latents * 0.7 + timestep / 1000)


def advance(made: list[Sampler], latents: list[torch.Tensor], generators: list[torch.Generator]) -> None:
    """One step of every unfinished picture, in one batch."""
    active = [i for i, sampler in enumerate(made) if not sampler.finished]
    chosen = [made[i] for i in active]
    stacked = torch.stack([latents[i] for i in active])
    scaled = scale_inputs(chosen, stacked)
    output = torch.stack([predict(scaled[k], one.timesteps[one.index]) for k, one in enumerate(chosen)])
    stepped = step_all(chosen, output, stacked, [generators[i] for i in active])
    for k, i in enumerate(active):
        latents[i] = stepped[k]


def run_ours(samplers: Samplers, names: list[tuple[str, int]], noise: torch.Tensor) -> torch.Tensor:
    """All pictures in one batch; those that are finished leave it."""
    made = [samplers.make(name, steps, CPU) for name, steps in names]
    generators = [torch.Generator().manual_seed(i) for i in range(len(made))]
    latents = [noise[i] * sampler.init_noise_sigma for i, sampler in enumerate(made)]
    while not all(sampler.finished for sampler in made):
        advance(made, latents, generators)
    return torch.stack(latents)


def stock_scheduler(config: dict[str, Any], name: str, steps: int) -> Any:
    kind = KINDS[name]
    clean = {key: value for key, value in config.items() if key not in ("_class_name", "use_karras_sigmas")}
    scheduler = kind.cls.from_config(clean, **kind.overrides)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # without it diffusers looks for the first timestep by value and, where rounding made two of it, skips one
        scheduler.set_begin_index(0)
    return scheduler


def stock_loop(
    scheduler: Any, timesteps: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The loop of diffusers' pipelines for one picture. [1, 4, h, w] in, [4, h, w] out."""
    adds_noise = "generator" in inspect.signature(scheduler.step).parameters and not isinstance(
        scheduler, DDIMScheduler
    )
    keywords = {"generator": generator} if adds_noise else {}
    for timestep in timesteps:
        output = predict(scheduler.scale_model_input(latents, timestep), float(timestep))
        latents = scheduler.step(output, timestep, latents, return_dict=False, **keywords)[0]
    return latents[0]


def run_stock(config: dict[str, Any], name: str, steps: int, noise: torch.Tensor, seed: int) -> torch.Tensor:
    scheduler = stock_scheduler(config, name, steps)
    latents = noise[None] * scheduler.init_noise_sigma
    return stock_loop(scheduler, scheduler.timesteps, latents, torch.Generator().manual_seed(seed))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize(("label", "name"), STOCK)
def test_equals_diffusers_own_loop(label: str, name: str) -> None:
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    counts = (5, 9, 1, 24)
    ours = run_ours(SAMPLERS[label], [(name, steps) for steps in counts], noise)
    for i, steps in enumerate(counts):
        close(ours[i], run_stock(CONFIGS[label], name, steps, noise[i], i))


@pytest.mark.parametrize("label", list(CONFIGS))
def test_a_batch_of_different_schedulers_equals_each_alone(label: str) -> None:
    samplers = SAMPLERS[label]
    names = [(name, 4 + i) for i, name in enumerate(samplers.names)]
    noise = torch.randn(len(names), 4, 8, 8, generator=torch.Generator().manual_seed(2))
    together = run_ours(samplers, names, noise)
    for i, (name, steps) in enumerate(names):
        if name != "lms":
            close(together[i], run_stock(CONFIGS[label], name, steps, noise[i], i))


@pytest.mark.parametrize("label", list(CONFIGS))
def test_a_batch_of_one_equals_the_batch_of_all(label: str) -> None:
    samplers = SAMPLERS[label]
    names = [(name, 6) for name in samplers.names]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).expand(len(names), -1, -1, -1)
    together = run_ours(samplers, names, noise)
    made = [samplers.make(name, steps, CPU) for name, steps in names]
    for i, one in enumerate(made):
        latents, generator = [noise[i] * one.init_noise_sigma], [torch.Generator().manual_seed(i)]
        while not one.finished:
            advance([one], latents, generator)
        torch.testing.assert_close(latents[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "lcm"])
def test_noise_is_the_slots_own_in_whatever_order_the_batch_draws_it(name: str) -> None:
    samplers = SAMPLERS["epsilon"]
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    alone = run_stock(SDXL_BASE, name, 8, noise[1], seed=1)
    orders = ([0, 1, 2], [2, 1, 0], [1], [1, 0])
    for order in orders:
        made = [samplers.make(name, 8 if i == 1 else 5 + i, CPU) for i in order]
        generators = [torch.Generator().manual_seed(i) for i in order]
        latents = [noise[i] * sampler.init_noise_sigma for i, sampler in zip(order, made, strict=True)]
        if len(order) > 2:  # the others have a head start
            place = order.index(1)
            others = [k for k in range(len(order)) if k != place]
            kept = [latents[k] for k in others]
            advance([made[k] for k in others], kept, [generators[k] for k in others])
            for k, moved in zip(others, kept, strict=True):
                latents[k] = moved
        while not all(sampler.finished for sampler in made):
            advance(made, latents, generators)
        close(latents[order.index(1)], alone)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "heun"])
def test_batched_arithmetic_honours_the_prediction_type(kind: str, name: str) -> None:
    config = {**SDXL_BASE, "prediction_type": kind}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = run_ours(Samplers(config), [(name, 6), (name, 6)], noise)
    close(ours[0], run_stock(config, name, 6, noise[0], 0))


@pytest.mark.parametrize("label", list(CONFIGS))
def test_the_kinds_differ(label: str) -> None:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    samplers = SAMPLERS[label]
    results = {name: run_ours(samplers, [(name, 6)], noise) for name in samplers.names}
    for name, result in results.items():
        assert torch.isfinite(result).all(), name
        for other, theirs in results.items():
            assert name == other or (result - theirs).abs().max() > 1e-3, (name, other)


# ---- what a checkpoint allows


def test_every_kind_works_on_a_checkpoint_that_predicts_noise() -> None:
    assert SAMPLERS["epsilon"].names == tuple(KINDS)


def test_kinds_without_a_zero_snr_option_are_not_offered_where_the_checkpoint_needs_it() -> None:
    names = SAMPLERS["v_zero_snr"].names
    assert set(KINDS) - set(names) == set(NEEDS_ZERO_SNR)


@pytest.mark.parametrize("name", ["PNDM", "KLMS", "DPMSolverSinglestep", "Heun"])
def test_one_that_cannot_honour_the_checkpoint_is_refused_with_the_reason_and_those_that_can(name: str) -> None:
    samplers = SAMPLERS["v_zero_snr"]
    with pytest.raises(UnknownSchedulerError) as refused:
        samplers.make(name, 4, CPU)
    message = str(refused.value)
    assert f"'{name}' cannot be used with this checkpoint" in message
    assert "zero signal-to-noise" in message
    assert message.endswith(f"those that can are {', '.join(samplers.names)}")
    assert SAMPLERS["epsilon"].resolve(name) in KINDS


def test_kinds_that_divide_by_zero_are_refused_on_noise_prediction_with_zero_snr() -> None:
    names = Samplers({**TINY, "prediction_type": "epsilon"}).names
    assert not {"ddim", "lcm"} & set(names)
    noise = torch.randn(len(names), 4, 8, 8, generator=torch.Generator().manual_seed(5))
    made = run_ours(Samplers({**TINY, "prediction_type": "epsilon"}), [(name, 4) for name in names], noise)
    assert torch.isfinite(made).all()


def test_kinds_that_do_not_know_a_prediction_type_are_refused() -> None:
    samplers = Samplers({**SDXL_BASE, "prediction_type": "sample"})
    assert not {"euler_a", "pndm"} & set(samplers.names)
    with pytest.raises(UnknownSchedulerError, match="prediction type, sample"):
        samplers.resolve("euler_a")


@pytest.mark.parametrize("name", list(KINDS))
def test_what_is_said_of_zero_snr_is_what_diffusers_classes_take(name: str) -> None:
    if name == "lms":  # ours; diffusers' has no such option
        assert not KINDS[name].zero_snr
    else:
        options = inspect.signature(KINDS[name].cls.__init__).parameters
        assert KINDS[name].zero_snr == ("rescale_betas_zero_snr" in options)


def test_a_checkpoints_own_choice_of_another_kind_does_not_leak_in() -> None:
    odd = {**SDXL_BASE, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    for name in ("euler", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        plain = run_ours(SAMPLERS["epsilon"], [(name, 6)], noise)
        assert torch.equal(run_ours(Samplers(odd), [(name, 6)], noise), plain), name


# ---- state and cost


def test_samplers_do_not_share_state() -> None:
    samplers = SAMPLERS["epsilon"]
    for name in samplers.names:
        first, second = samplers.make(name, 5, CPU), samplers.make(name, 5, CPU)
        steps = second.steps
        fresh = {key: str(value) for key, value in vars(second.scheduler).items()} if second.scheduler else {}
        advance([first], [torch.ones(4, 8, 8)], [torch.Generator().manual_seed(0)])
        first.end_before(0.5)
        assert (second.index, second.steps, second.history) == (0, steps, [])
        assert fresh == ({key: str(value) for key, value in vars(second.scheduler).items()} if fresh else {})


def test_schedules_are_shared_and_their_number_is_bounded() -> None:
    samplers = Samplers(TINY)
    assert samplers.make("euler", 7, CPU).schedule is samplers.make("euler", 7, CPU).schedule
    for steps in range(1, 151):
        samplers.make("euler", steps, CPU)
    assert len(samplers._schedules) <= KEPT_SCHEDULES


@pytest.mark.parametrize("name", SAMPLERS["v_zero_snr"].names)
@pytest.mark.parametrize("steps", [1, 2, 51, 61, 103, 121, 122, 150])
def test_any_number_of_steps_has_a_schedule_that_falls_and_ends_above_zero(name: str, steps: int) -> None:
    sampler = SAMPLERS["v_zero_snr"].make(name, steps, CPU)
    assert sampler.steps == steps
    assert sampler.timesteps == sorted(sampler.timesteps, reverse=True)
    assert sampler.timesteps[0] == pytest.approx(999)
    assert sampler.timesteps[-1] >= 0
    assert len(sampler.levels) == steps


def test_lcm_takes_more_steps_than_it_was_distilled_with() -> None:
    usual = LCMScheduler.from_config({key: value for key, value in TINY.items() if key != "_class_name"})
    usual.set_timesteps(8)
    assert SAMPLERS["v_zero_snr"].make("lcm", 8, CPU).timesteps == [float(value) for value in usual.timesteps]
    assert SAMPLERS["v_zero_snr"].make("lcm", 60, CPU).timesteps[0] == 999


def test_making_a_sampler_is_cheap_once_its_schedule_is_known() -> None:
    samplers = SAMPLERS["epsilon"]
    samplers.make("dpmpp_2m_karras", 30, CPU)
    took = []
    for _ in range(200):
        before = time.process_time()
        samplers.make("dpmpp_2m_karras", 30, CPU)
        took.append(time.process_time() - before)
    assert np.median(took) < 0.5e-3  # a deep copy and set_timesteps took 0.8 ms


# ---- beginning late and ending early


def stock_timesteps(scheduler: Any, steps: int, strength: float) -> torch.Tensor:
    """What `get_timesteps` of diffusers' img2img answers."""
    begin = max(steps - min(int(steps * strength), steps), 0)
    scheduler.set_begin_index(begin * scheduler.order)
    timesteps: torch.Tensor = scheduler.timesteps[begin * scheduler.order :]
    return timesteps


IMG2IMG = [(label, name) for label, name in STOCK if name not in ("ddim", "lcm", "pndm")]


@pytest.mark.parametrize("strength", [0.3, 0.55, 1.0])
@pytest.mark.parametrize(("label", "name"), IMG2IMG)
def test_beginning_at_a_strength_equals_diffusers_img2img(label: str, name: str, strength: float) -> None:
    picture, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    scheduler = stock_scheduler(CONFIGS[label], name, 10)
    timesteps = stock_timesteps(scheduler, 10, strength)
    start = scheduler.add_noise(picture[None], noise[None], timesteps[:1])
    sampler = SAMPLERS[label].make(name, 10, CPU)
    sampler.begin_at(strength)
    assert sampler.timesteps == [float(value) for value in timesteps]
    latents = [sampler.add_noise(picture, noise)]
    close(latents[0], start[0])
    theirs = stock_loop(scheduler, timesteps, start, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    while not sampler.finished:
        advance([sampler], latents, [generator])
    close(latents[0], theirs)


@pytest.mark.parametrize("name", SAMPLERS["epsilon"].names)
@pytest.mark.parametrize(("strength", "drawn"), [(0.01, 1), (0.1, 1), (0.5, 5), (0.99, 9), (1.0, 10)])
def test_at_least_one_step_of_the_strength_asked_for_is_drawn(name: str, strength: float, drawn: int) -> None:
    sampler = SAMPLERS["epsilon"].make(name, 10, CPU)
    sampler.begin_at(strength)
    calls = {"heun": 2 * drawn - 1, "pndm": drawn + (drawn > 1)}
    assert sampler.steps == calls.get(name, drawn)
    latents = [sampler.add_noise(torch.zeros(4, 8, 8), torch.randn(4, 8, 8))]
    while not sampler.finished:
        advance([sampler], latents, [torch.Generator().manual_seed(0)])
    assert torch.isfinite(latents[0]).all()
    assert sampler.index == sampler.steps


@pytest.mark.parametrize("label", list(CONFIGS))
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_a_perfect_prediction_brings_the_picture_back(label: str, strength: float) -> None:
    """Whatever the solver: noise that is told exactly is taken out exactly, wherever the schedule begins."""
    samplers = SAMPLERS[label]
    picture, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    for name in samplers.names:
        sampler = samplers.make(name, 12, CPU)
        sampler.begin_at(strength)
        latents = sampler.add_noise(picture, noise)
        while not sampler.finished:
            kept, share = sampler.levels[sampler.index]
            size = (kept**2 + share**2) ** 0.5
            alpha, sigma = kept / size, share / size
            told = (latents / size - alpha * picture) / sigma
            output = told if sampler.prediction_type == "epsilon" else alpha * told - sigma * picture
            stepped = step_all([sampler], output[None], latents[None], [torch.Generator().manual_seed(9)])
            latents = stepped[0]
        # DDIM and PNDM end at the first timestep's noise rather than at none (set_alpha_to_one: false)
        atol = 0.1 if name in ("ddim", "pndm") else 2e-2
        assert (latents - picture).abs().max() < atol, name


@pytest.mark.parametrize("name", SAMPLERS["epsilon"].names)
@pytest.mark.parametrize("frac", [0.2, 0.5, 0.8, 0.999])
def test_a_base_that_ends_early_and_a_refiner_that_begins_there_share_the_schedule(name: str, frac: float) -> None:
    whole = SAMPLERS["epsilon"].make(name, 10, CPU)
    base, refiner = (SAMPLERS["epsilon"].make(name, 10, CPU) for _ in range(2))
    base.end_before(frac)
    refiner.begin_after(frac)
    cutoff = round(1000 - frac * 1000)
    kept = [timestep for timestep in whole.timesteps if timestep >= cutoff]
    assert base.timesteps == (kept or whole.timesteps[:1])
    assert refiner.steps >= 1
    if name not in ("heun", "pndm") and kept and len(kept) < whole.steps:
        assert base.timesteps + refiner.timesteps == whole.timesteps


def test_a_refiner_of_second_order_begins_with_the_first_half_of_a_step() -> None:
    for frac in np.linspace(0.05, 0.95, 19):
        sampler = SAMPLERS["epsilon"].make("heun", 10, CPU)
        sampler.begin_after(float(frac))
        assert sampler.steps % 2 == 1


def test_multistep_solvers_begin_without_a_past_when_they_begin_late() -> None:
    """The refiner's first step is of first order, as diffusers' own loop does it."""
    picture, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(10))
    sampler = SAMPLERS["epsilon"].make("dpmpp_2m", 10, CPU)
    sampler.begin_after(0.5)
    scheduler = stock_scheduler(SDXL_BASE, "dpmpp_2m", 10)
    begin = int((scheduler.timesteps >= 500).sum())
    scheduler.set_begin_index(begin)
    start = sampler.add_noise(picture, noise)
    theirs = stock_loop(scheduler, scheduler.timesteps[begin:], start[None], torch.Generator())
    latents = [start]
    while not sampler.finished:
        advance([sampler], latents, [torch.Generator()])
    close(latents[0], theirs)


# ---- noise for what inpainting keeps


@pytest.mark.parametrize(("label", "name"), IMG2IMG)
def test_the_kept_part_is_noised_as_diffusers_inpainting_does(label: str, name: str) -> None:
    picture, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(11))
    scheduler = stock_scheduler(CONFIGS[label], name, 8)
    timesteps = stock_timesteps(scheduler, 8, 0.6)
    sampler = SAMPLERS[label].make(name, 8, CPU)
    sampler.begin_at(0.6)
    latents = [sampler.add_noise(picture, noise)]
    theirs = latents[0][None]
    generator = torch.Generator().manual_seed(0)
    for i, timestep in enumerate(timesteps):
        output = predict(scheduler.scale_model_input(theirs, timestep), float(timestep))
        theirs = scheduler.step(output, timestep, theirs, return_dict=False)[0]
        advance([sampler], latents, [generator])
        kept = picture
        if i < len(timesteps) - 1:
            kept = scheduler.add_noise(picture[None], noise[None], torch.tensor([float(timesteps[i + 1])]))[0]
        close(sampler.noised(picture, noise), kept)
    assert torch.equal(sampler.noised(picture, noise), picture)


def test_the_kept_part_is_still_noisy_where_a_base_hands_over_to_a_refiner() -> None:
    picture, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(12))
    samplers = SAMPLERS["epsilon"]
    base, refiner = samplers.make("euler", 10, CPU), samplers.make("euler", 10, CPU)
    base.end_before(0.8)
    refiner.begin_after(0.8)
    latents = [noise * base.init_noise_sigma]
    while not base.finished:
        advance([base], latents, [torch.Generator()])
    torch.testing.assert_close(base.noised(picture, noise), refiner.add_noise(picture, noise))


# ---- whole pictures, by diffusers' own pipelines


@dataclass(frozen=True)
class Scene:
    """The tiny checkpoint's UNet and VAE with one prompt's embeddings, for both ways of drawing."""

    parts: dict[str, Any]
    prompts: dict[str, torch.Tensor]
    original: torch.Tensor

    GUIDANCE = 3.0

    def pipeline(self, cls: type[Any], scheduler: Any) -> Any:
        pipeline = cls(**self.parts, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def predict(self, latents: torch.Tensor, timestep: float) -> torch.Tensor:
        """The guided prediction, as the pipelines make it. [1, 4, h, w] in and out."""
        side = float(latents.shape[-1] * 8)
        conditions = {
            "text_embeds": torch.cat(
                [self.prompts["negative_pooled_prompt_embeds"], self.prompts["pooled_prompt_embeds"]]
            ),
            "time_ids": torch.tensor([[side, side, 0.0, 0.0, side, side]] * 2),
        }
        states = torch.cat([self.prompts["negative_prompt_embeds"], self.prompts["prompt_embeds"]])
        output = self.parts["unet"](
            torch.cat([latents] * 2), timestep, encoder_hidden_states=states, added_cond_kwargs=conditions
        ).sample
        guided: torch.Tensor = output[:1] + self.GUIDANCE * (output[1:] - output[:1])
        return guided

    def draw(
        self, sampler: Sampler, latents: torch.Tensor, generator: torch.Generator, mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        while not sampler.finished:
            output = self.predict(scale_inputs([sampler], latents), sampler.timesteps[sampler.index])
            latents = step_all([sampler], output, latents, [generator])
            if mask is not None and noise is not None:
                latents = (1 - mask) * sampler.noised(self.original, noise) + mask * latents
        return latents

    def pixels(self, latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
        vae = self.parts["vae"]
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
        levels: np.ndarray[Any, np.dtype[np.int64]] = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().long().numpy()
        return levels

    def same(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert np.abs(self.pixels(ours) - self.pixels(theirs)).max() <= 1


@pytest.fixture(scope="module")
def scene(checkpoint: Checkpoint) -> Iterator[Scene]:
    parts = {
        "vae": checkpoint.vae,
        "text_encoder": checkpoint.text_encoders[0],
        "text_encoder_2": checkpoint.text_encoders[1],
        "tokenizer": checkpoint.tokenizers[0],
        "tokenizer_2": checkpoint.tokenizers[1],
        "unet": checkpoint.unet,
    }
    with torch.inference_mode():
        pipeline = StableDiffusionXLPipeline(**parts, scheduler=stock_scheduler(TINY, "euler", 1))
        made = pipeline.encode_prompt("a red circle on a blue background", negative_prompt="blurry")
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        original = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(20))
        yield Scene(parts, dict(zip(names, made, strict=True)), original)


def common(scene: Scene, seed: int) -> dict[str, Any]:
    return {
        **scene.prompts,
        "guidance_scale": scene.GUIDANCE,
        "height": 128,
        "width": 128,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }


@pytest.mark.parametrize(("label", "name"), [case for case in STOCK if case[0] != "v"])
@torch.inference_mode()
def test_a_picture_equals_the_stock_pipelines(scene: Scene, label: str, name: str) -> None:
    pipeline = scene.pipeline(StableDiffusionXLPipeline, stock_scheduler(CONFIGS[label], name, 6))
    theirs = pipeline(num_inference_steps=6, **common(scene, 3)).images
    sampler = SAMPLERS[label].make(name, 6, CPU)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    scene.same(scene.draw(sampler, noise * sampler.init_noise_sigma, generator), theirs)


FROM_A_PICTURE = ("euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "unipc", "lcm")


@pytest.mark.parametrize("name", FROM_A_PICTURE)
@torch.inference_mode()
def test_img2img_equals_the_stock_pipelines(scene: Scene, name: str) -> None:
    pipeline = scene.pipeline(StableDiffusionXLImg2ImgPipeline, stock_scheduler(TINY, name, 8))
    options = common(scene, 4)
    del options["height"], options["width"]
    theirs = pipeline(image=scene.original, strength=0.6, num_inference_steps=8, **options).images
    sampler = SAMPLERS["v_zero_snr"].make(name, 8, CPU)
    sampler.begin_at(0.6)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    scene.same(scene.draw(sampler, sampler.add_noise(scene.original, noise), generator), theirs)


@pytest.mark.parametrize("strength", [0.7, 1.0])
@pytest.mark.parametrize("name", FROM_A_PICTURE)
@torch.inference_mode()
def test_inpainting_equals_the_stock_pipelines(scene: Scene, name: str, strength: float) -> None:
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 40:104] = 1
    pipeline = scene.pipeline(StableDiffusionXLInpaintPipeline, stock_scheduler(TINY, name, 6))
    theirs = pipeline(
        image=scene.original, mask_image=mask, strength=strength, num_inference_steps=6, **common(scene, 5)
    ).images
    sampler = SAMPLERS["v_zero_snr"].make(name, 6, CPU)
    sampler.begin_at(strength)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    # at full strength the inpainting pipeline begins in noise alone, the img2img pipeline does not
    whole = strength == 1.0
    start = noise * sampler.init_noise_sigma if whole else sampler.add_noise(scene.original, noise)
    small = torch.nn.functional.interpolate(mask, size=(16, 16))
    scene.same(scene.draw(sampler, start, generator, small, noise), theirs)


@torch.inference_mode()
def test_an_ensemble_of_base_and_refiner_equals_the_stock_pipelines(scene: Scene) -> None:
    base = scene.pipeline(StableDiffusionXLPipeline, stock_scheduler(TINY, "euler", 8))
    half = base(num_inference_steps=8, denoising_end=0.6, **common(scene, 6)).images
    refiner = scene.pipeline(StableDiffusionXLImg2ImgPipeline, stock_scheduler(TINY, "euler", 10))
    options = common(scene, 6)
    del options["height"], options["width"]
    theirs = refiner(image=half, num_inference_steps=10, denoising_start=0.6, **options).images
    samplers = SAMPLERS["v_zero_snr"]
    first, second = samplers.make("euler", 8, CPU), samplers.make("euler", 10, CPU)
    first.end_before(0.6)
    second.begin_after(0.6)
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(1, 4, 16, 16, generator=generator) * first.init_noise_sigma
    scene.same(scene.draw(second, scene.draw(first, noise, generator), generator), theirs)


def test_every_scheduler_is_offered_by_a_checkpoint_saved_for_noise_prediction(tmp_path: Path) -> None:
    folder = copy_tiny(tmp_path / "noise")
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="epsilon",
        rescale_betas_zero_snr=False,
        timestep_spacing="leading",
        steps_offset=1,
    )
    loaded = load_checkpoint("noise", None, (tmp_path,), device="cpu")
    samplers = Samplers(loaded.scheduler_config)
    assert samplers.names == tuple(KINDS)
    for name in samplers.names:
        assert samplers.make(name, 4, CPU).prediction_type == "epsilon"


def test_zero_snr_begins_in_nothing_but_noise() -> None:
    picture, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(13))
    samplers = SAMPLERS["v_zero_snr"]
    for name in samplers.names:
        sampler = samplers.make(name, 5, CPU)
        start = sampler.add_noise(picture, noise) / sampler.init_noise_sigma
        torch.testing.assert_close(start, noise, rtol=0, atol=2e-3)
