from __future__ import annotations

import dataclasses
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from inference.engine.engine import EngineLimits
from inference.engine.samplers import KINDS
from inference.engine.types import (
    Cancelled,
    CannotStartInTimeError,
    Completed,
    EngineError,
    EngineFullError,
    EngineJob,
    Failed,
    OutOfMemoryError,
    PictureDone,
    PictureSpec,
    Progressed,
    Started,
    UnknownSchedulerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.checkpoint import Checkpoint

MakeSpec = "Callable[..., PictureSpec]"


def distance(first: Any, second: Any) -> int:
    """The largest difference of two pictures in 8-bit levels."""
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second.astype(int)).max())


def mixed_specs(make_spec: Callable[..., PictureSpec], count: int) -> list[PictureSpec]:
    draw = random.Random(5)
    return [
        make_spec(
            prompt=f"a {draw.choice(['red', 'green', 'blue'])} square, number {i}",
            negative_prompt=draw.choice(["", "blurry"]),
            width=draw.choice([128, 96]),
            height=draw.choice([128, 160]),
            steps=draw.randint(2, 7),
            guidance_scale=draw.choice([0.0, 1.0, 2.0, 5.0]),
            seed=draw.randrange(2**32),
            scheduler=draw.choice([name for name, kind in KINDS.items() if kind.zero_snr]),
        )
        for i in range(count)
    ]


class WrappedUNet:
    """The checkpoint's UNet with a hook before every call."""

    def __init__(self, unet: Any, before: Callable[[int], None]) -> None:
        self._unet, self._before = unet, before
        self.calls = 0

    def __call__(self, sample: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        self.calls += 1
        self._before(len(sample))
        return self._unet(sample, *args, **keywords)


def with_unet(checkpoint: Checkpoint, before: Callable[[int], None]) -> Checkpoint:
    return dataclasses.replace(checkpoint, unet=WrappedUNet(checkpoint.unet, before))


# ---- pixels


@pytest.mark.parametrize(("guidance", "negative"), [(3.0, ""), (5.0, "blurry"), (1.0, "ignored")])
def test_equals_the_stock_pipeline(
    driver: Any, make_spec: Any, tiny_folder: str, guidance: float, negative: str
) -> None:
    picture = driver.draw(make_spec(guidance_scale=guidance, negative_prompt=negative, steps=6)).picture
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        prompt="a red circle on a blue background",
        negative_prompt=negative,
        width=128,
        height=128,
        num_inference_steps=6,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    assert distance(picture, (stock * 255).round().astype(np.uint8)) <= 1


def test_twenty_mixed_pictures_together_equal_each_alone(driver: Any, make_spec: Any) -> None:
    specs = mixed_specs(make_spec, 20)
    together = driver.draw_together(specs)
    for one, outcome in zip(specs, together, strict=True):
        assert outcome.picture.shape == (one.height, one.width, 3)
        assert distance(outcome.picture, driver.draw(one).picture) <= 1


def test_strict_is_equal_bit_for_bit_whatever_else_runs(driver: Any, make_spec: Any) -> None:
    specs = mixed_specs(make_spec, 4)
    noise = [driver.start(one)[1] for one in mixed_specs(make_spec, 8)]
    busy = driver.draw_together(specs, strict=True)
    for events in noise:
        driver.wait(events)
    for one, outcome in zip(specs, busy, strict=True):
        assert distance(outcome.picture, driver.draw(one, strict=True).picture) == 0
        done = next(event for event in outcome.events if isinstance(event, PictureDone))
        assert done.bucket == (2 if one.guidance_scale > 1 else 1)


def test_each_picture_of_a_job_equals_its_seed_alone(driver: Any, make_spec: Any) -> None:
    specs = [make_spec(seed=seed) for seed in (7, 8, 9)]
    job = driver.draw(*specs)
    assert sorted(job.pictures) == [0, 1, 2]
    assert distance(job.pictures[0], job.pictures[1]) > 1
    for index, one in enumerate(specs):
        assert distance(job.pictures[index], driver.draw(one).picture) <= 1


def test_neighbours_in_a_fixed_bucket_change_nothing(make_driver: Any, make_spec: Any) -> None:
    pinned = make_driver(EngineLimits(max_batch=4, decode_batch=1, buckets=(8,)))
    alone = pinned.draw(make_spec()).picture
    others = [make_spec(seed=i, prompt=f"picture {i}", steps=3 + i) for i in range(3)]
    assert distance(alone, pinned.draw_together([*others, make_spec()])[-1].picture) == 0


def test_a_picture_keeps_its_bucket(make_driver: Any, make_spec: Any) -> None:
    pinned = make_driver(EngineLimits(max_batch=8, buckets=(1, 2, 4, 8, 16)))
    for outcome in pinned.draw_together([make_spec(seed=i, steps=2 + i) for i in range(8)]):
        assert isinstance(outcome.last, Completed)
        done = next(event for event in outcome.events if isinstance(event, PictureDone))
        assert done.bucket in (2, 4, 8, 16)


# ---- events


def test_events_come_in_order_and_progress_counts_every_step(driver: Any, make_spec: Any) -> None:
    outcome = driver.draw(make_spec(steps=3, seed=1), make_spec(steps=3, seed=2))
    kinds = [type(event) for event in outcome.events if not (isinstance(event, Progressed) and event.queue_position)]
    assert kinds[0] is Started
    assert kinds[-1] is Completed
    steps = [event.step for event in outcome.events if isinstance(event, Progressed) and not event.queue_position]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    assert {event.steps for event in outcome.events if isinstance(event, Progressed)} == {6}
    etas = [event.eta_s for event in outcome.events if isinstance(event, Progressed) and not event.queue_position]
    assert etas[-1] == 0


def test_a_waiting_job_hears_its_place(make_driver: Any, make_spec: Any) -> None:
    single = make_driver(EngineLimits(max_batch=1))
    started = [single.start(make_spec(steps=3, seed=i))[1] for i in range(4)]
    last = [single.wait(events) for events in started][-1]
    places = [event.queue_position for event in last.events if isinstance(event, Progressed) and event.queue_position]
    assert places == sorted(places, reverse=True)
    assert places[0] > places[-1] >= 1


def test_a_prompt_cut_short_is_said(driver: Any, make_spec: Any) -> None:
    last = driver.draw(make_spec(prompt="red circle " * 400)).last
    assert last.notes
    assert last.notes[0].startswith("prompt:")
    assert driver.draw(make_spec()).last.notes == ()


def test_a_prompt_of_several_chunks_is_read_to_its_end(driver: Any, make_spec: Any) -> None:
    long = driver.draw(make_spec(prompt="red circle " * 60 + "on a green background"))
    assert long.last.notes == ()
    other = driver.draw(make_spec(prompt="red circle " * 60 + "on a blue background"))
    assert distance(long.picture, other.picture) > 1


# ---- admission and cancelling


def test_admission_is_bounded(make_driver: Any, make_spec: Any) -> None:
    small = make_driver(EngineLimits(max_batch=1, max_waiting=2))
    accepted, refusals = [], []
    for i in range(12):
        try:
            accepted.append(small.start(make_spec(seed=i))[1])
        except EngineFullError as full:
            refusals.append(full.retry_after_s)
    assert len(refusals) >= 12 - 5
    assert min(refusals) >= 1
    for events in accepted:
        assert isinstance(small.wait(events).last, Completed)
    assert isinstance(small.draw(make_spec()).last, Completed)
    assert small.engine.stats().waiting == 0


def test_jobs_that_came_during_a_step_are_reckoned_with(make_driver: Any, make_spec: Any) -> None:
    driver = make_driver(EngineLimits(max_batch=2))
    driver.draw(make_spec(steps=10))  # from here on its pace is known
    step_is_over = threading.Event()
    driver.engine._loop.inbox.put(lambda: step_is_over.wait(60))
    burst = [driver.start(make_spec(steps=10, seed=seed))[1] for seed in range(6)]
    with pytest.raises(CannotStartInTimeError) as refused:
        driver.start(make_spec(), within_s=0.001)
    assert refused.value.wait_s > 0.001
    step_is_over.set()
    for events in burst:
        assert isinstance(driver.wait(events).last, Completed)


def test_cancel_takes_effect_at_a_step_and_leaves_others_alone(driver: Any, make_spec: Any) -> None:
    keep_id, keep = driver.start(make_spec(steps=8))
    job_id, events = driver.start(make_spec(steps=150))
    while not (isinstance(event := events.get(timeout=30), Progressed) and event.step >= 2):
        pass
    assert driver.engine.cancel(job_id)
    outcome = driver.wait(events)
    assert isinstance(outcome.last, Cancelled)
    assert all(getattr(event, "step", 0) < 100 for event in outcome.events)
    assert isinstance(driver.wait(keep).last, Completed)
    assert not driver.engine.cancel(job_id)
    assert not driver.engine.cancel(keep_id)
    assert driver.engine.stats().running == 0


def test_cancel_while_waiting(make_driver: Any, make_spec: Any) -> None:
    single = make_driver(EngineLimits(max_batch=1))
    _, first = single.start(make_spec(steps=30))
    _, second = single.start(make_spec(steps=30))
    job_id, third = single.start(make_spec(seed=1), make_spec(seed=2))
    assert single.engine.cancel(job_id)
    assert isinstance(single.wait(third).last, Cancelled)
    assert isinstance(single.wait(first).last, Completed)
    assert isinstance(single.wait(second).last, Completed)
    assert single.engine.stats().waiting == 0


def test_unknown_scheduler_and_repeated_id_are_refused(driver: Any, make_spec: Any) -> None:
    with pytest.raises(UnknownSchedulerError):
        driver.start(make_spec(scheduler="nope"))
    job_id, events = driver.start(make_spec(steps=30))
    with pytest.raises(EngineError, match="under way"):
        driver.engine.submit(EngineJob(job_id, (make_spec(),)), lambda _event: None)
    driver.engine.cancel(job_id)
    driver.wait(events)


def test_one_size_does_not_starve_another(driver: Any, make_spec: Any) -> None:
    crowd = [driver.start(make_spec(seed=i, steps=40))[1] for i in range(8)]
    lone = driver.draw(make_spec(width=96, height=96, steps=3))
    assert isinstance(lone.last, Completed)
    ends = [driver.wait(events).last for events in crowd]
    assert all(isinstance(end, Completed) and end.run_s > lone.last.run_s for end in ends)


# ---- faults


def test_a_failing_listener_does_not_stop_the_engine(driver: Any, make_spec: Any) -> None:
    heard = threading.Event()

    def listener(_event: object) -> None:
        heard.set()
        raise ValueError("a listener's own fault")

    driver.engine.submit(EngineJob("faulty-listener", (make_spec(),)), listener)
    assert heard.wait(30)
    assert isinstance(driver.draw(make_spec()).last, Completed)


def test_a_failing_step_fails_its_jobs_and_no_others(
    make_driver: Any, make_spec: Any, checkpoint: Checkpoint
) -> None:
    fail = threading.Event()

    def before(_rows: int) -> None:
        if fail.is_set():
            raise RuntimeError("secret detail of a kernel")

    broken = make_driver(using=with_unet(checkpoint, before))
    fail.set()
    for _ in range(3):
        last = broken.draw(make_spec()).last
        assert isinstance(last, Failed)
        assert "secret" not in str(last.error)
    assert not broken.engine.stats().healthy
    fail.clear()
    assert isinstance(broken.draw(make_spec()).last, Completed)
    assert broken.engine.stats().healthy


def test_out_of_memory_halves_the_batch_and_goes_on(make_driver: Any, make_spec: Any, checkpoint: Checkpoint) -> None:
    seen: list[int] = []

    def before(rows: int) -> None:
        seen.append(rows)
        if rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    tight = make_driver(using=with_unet(checkpoint, before))
    outcomes = tight.draw_together([make_spec(seed=i, steps=3) for i in range(8)])
    assert all(isinstance(outcome.last, Completed) for outcome in outcomes)
    assert max(seen) > 4
    assert seen[-1] <= 4


def test_pictures_without_guidance_go_one_by_one_where_two_do_not_fit(
    make_driver: Any, make_spec: Any, checkpoint: Checkpoint
) -> None:
    def before(rows: int) -> None:
        if rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for buckets in ((), (1, 2, 4)):
        tight = make_driver(EngineLimits(buckets=buckets), using=with_unet(checkpoint, before))
        outcome = tight.draw(*(make_spec(seed=i, steps=2, guidance_scale=1.0) for i in range(2)))
        assert isinstance(outcome.last, Completed)
        refused = tight.draw(make_spec(steps=2)).last
        assert isinstance(refused, Failed), "a guided one cannot be smaller than two rows"


def test_out_of_memory_alone_fails_with_its_name(make_driver: Any, make_spec: Any, checkpoint: Checkpoint) -> None:
    def before(_rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tight = make_driver(using=with_unet(checkpoint, before))
    last = tight.draw(make_spec()).last
    assert isinstance(last, Failed)
    assert isinstance(last.error, OutOfMemoryError)


@pytest.mark.parametrize(("refusals", "end"), [(1, Completed), (2, Failed)])
def test_a_finished_picture_without_memory_for_its_pixels_is_tried_once_more(
    refusals: int, end: type, make_driver: Any, make_spec: Any, checkpoint: Checkpoint
) -> None:
    """Its steps are made, and what graphs and caches held is free by then."""

    class TightVae:
        refused = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(checkpoint.vae, name)

        def decode(self, *args: Any, **options: Any) -> Any:
            if self.refused < refusals:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return checkpoint.vae.decode(*args, **options)

    class Graphs(WrappedUNet):
        forgotten = 0

        def forget(self) -> None:
            self.forgotten += 1

    graphs: Any = Graphs(checkpoint.unet, lambda _rows: None)
    tight = dataclasses.replace(checkpoint, vae=TightVae(), runner=graphs)
    last = make_driver(using=tight).draw(make_spec(steps=2)).last
    assert isinstance(last, end)
    assert not isinstance(last, Failed) or isinstance(last.error, OutOfMemoryError)
    assert graphs.forgotten == 1


def test_numbers_that_are_not_finite_fail_only_their_own_picture(
    make_driver: Any, make_spec: Any, checkpoint: Checkpoint
) -> None:
    class Poisoned(WrappedUNet):
        def __call__(self, sample: torch.Tensor, *args: Any, **keywords: Any) -> Any:
            output = self._unet(sample, *args, **keywords)[0].clone()
            for row in range(len(sample)):
                if keywords["encoder_hidden_states"][row].abs().sum() == self.marked:
                    output[row] = float("nan")
            return (output,)

    unet = Poisoned(checkpoint.unet, lambda _rows: None)
    mixed = make_driver(using=dataclasses.replace(checkpoint, unet=unet))
    unet.marked = mixed.engine._pool._loaded[""]._texts.encode("poison", None).positive.states.abs().sum()
    good, bad = mixed.draw_together([make_spec(seed=1), make_spec(prompt="poison")])
    assert isinstance(good.last, Completed)
    assert isinstance(bad.last, Failed)
    assert "not finite" in str(bad.last.error)


def test_closing_ends_every_job(make_driver: Any, make_spec: Any) -> None:
    closing = make_driver(EngineLimits(max_batch=1))
    started = [closing.start(make_spec(steps=100, seed=i))[1] for i in range(3)]
    closing.engine.close()
    assert all(isinstance(closing.wait(events).last, Failed) for events in started)
    with pytest.raises(EngineError, match="shutting down"):
        closing.start(make_spec())
