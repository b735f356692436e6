from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from inference.engine.pace import MAX_BUCKETS, Load, Pace, predict
from inference.engine.types import HiresPass, InitPicture, PictureSpec, Predicted, RefinerPass


def picture(**changes: object) -> PictureSpec:
    values: dict[str, object] = {
        "prompt": "",
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "steps": 20,
        "guidance_scale": 5.0,
        "seed": 1,
        "scheduler": "euler",
    }
    return PictureSpec(**{**values, **changes})  # type: ignore[arg-type]


def measured(*, calls: int = 3) -> Pace:
    """A device that takes 0.1 s a row of 512x512, 0.3 s to decode, 0.2 s to encode and 0.05 s for a prompt."""
    pace = Pace()
    for _ in range(calls):
        for rows in (1, 2, 4):
            pace.ran("unet", 512, 512, rows, 0.1 * rows)
        pace.ran("vae_decode", 512, 512, 1, 0.3)
        pace.ran("vae_encode", 512, 512, 1, 0.2)
        pace.ran("text", 0, 0, 1, 0.05)
    return pace


# ---- means


def test_nothing_is_expected_of_what_was_never_measured() -> None:
    pace = Pace()
    pace.ran("text", 0, 0, 1, 0.05)
    assert pace.seconds("unet", 512, 512, 2) is None
    assert pace.row_seconds(512, 512, 2) is None
    assert pace.load(picture()) is None


def test_a_first_call_counts_until_the_second() -> None:
    pace = Pace()
    pace.ran("unet", 512, 512, 2, 9.0)
    assert pace.seconds("unet", 512, 512, 2) == 9.0
    pace.ran("unet", 512, 512, 2, 0.2)
    assert pace.seconds("unet", 512, 512, 2) == 0.2


def test_a_stall_is_bounded_and_forgotten_and_a_lasting_change_is_learned() -> None:
    pace = Pace()
    for seconds in (5.0, *[0.2] * 20, 60.0):
        pace.ran("unet", 512, 512, 2, seconds)
    assert pace.seconds("unet", 512, 512, 2) == pytest.approx(0.2 * (1 + 0.2 * 3))
    for _ in range(20):
        pace.ran("unet", 512, 512, 2, 0.2)
    assert pace.seconds("unet", 512, 512, 2) == pytest.approx(0.2, rel=0.01)
    for _ in range(40):
        pace.ran("unet", 512, 512, 2, 1.0)
    assert pace.seconds("unet", 512, 512, 2) == pytest.approx(1.0, rel=0.01)


def test_models_are_kept_apart_and_an_unknown_one_is_like_the_others() -> None:
    pace = Pace()
    pace.ran("unet", 512, 512, 2, 0.2, model="base")
    pace.ran("unet", 512, 512, 2, 0.1, model="turbo")
    assert pace.seconds("unet", 512, 512, 2, model="turbo") == 0.1
    assert pace.seconds("unet", 512, 512, 2, model="new") == 0.2  # of two answers the slower


def test_an_unseen_size_is_scaled_by_pixels_and_rows() -> None:
    pace = measured()
    assert pace.seconds("unet", 1024, 1024, 2) == pytest.approx(0.8)
    assert pace.seconds("unet", 512, 512, 3) == pytest.approx(0.3)
    assert pace.seconds("unet", 256, 256, 1) == pytest.approx(0.025)


def test_expectations_never_fall_with_the_work_and_stay_within_their_neighbours() -> None:
    pace = Pace()
    for side, seconds in ((256, 0.05), (512, 0.30), (768, 0.28), (1024, 1.4)):  # one of them noisy
        pace.ran("unet", side, side, 1, seconds)
    unseen = [pace.seconds("unet", side, 320, 1) or 0.0 for side in range(8, 4096, 24)]
    assert all(0 < fast <= slow for fast, slow in pairwise(unseen))
    between = [pace.seconds("unet", 8 * side, 512, 1) or 0.0 for side in range(65, 96)]
    assert all(0.29 <= seconds <= 1.4 for seconds in between)


def test_the_number_of_sizes_kept_is_bounded() -> None:
    pace = Pace()
    for side in range(8, 8 * (MAX_BUCKETS + 200), 8):
        pace.ran("unet", side, 64, 1, 0.1)
    assert len(pace._means) == MAX_BUCKETS


# ---- what a picture takes


def test_a_pictures_load_is_text_then_steps_then_decoding() -> None:
    load = measured().load(picture())
    assert load is not None
    assert (load.calls, load.first_s, load.last_s) == (20, 0.05, 0.3)
    assert load.call_s == pytest.approx(0.2)
    assert load.seconds == pytest.approx(0.05 + 20 * 0.2 + 0.3)
    unguided = measured().load(picture(guidance_scale=1.0))
    assert unguided is not None
    assert unguided.call_s == pytest.approx(0.1)


def test_a_share_of_a_larger_batch_is_cheaper_where_the_device_says_so() -> None:
    pace = Pace()
    pace.ran("unet", 512, 512, 2, 0.2)
    pace.ran("unet", 512, 512, 8, 0.4)
    alone, together = pace.load(picture()), pace.load(picture(), rows_together=8)
    assert alone is not None
    assert together is not None
    assert alone.call_s == pytest.approx(0.2)
    assert together.call_s == pytest.approx(0.1)


def test_every_pass_is_counted() -> None:
    pixels = np.zeros((512, 512, 3), dtype=np.uint8)
    pace = measured()
    from_picture = pace.load(picture(init=InitPicture(pixels, strength=0.5)))
    assert from_picture is not None
    assert from_picture.calls == 10
    assert from_picture.first_s == pytest.approx(0.25)
    large = pace.load(picture(hires=HiresPass(1024, 1024, steps=10, strength=0.4)))
    assert large is not None
    assert large.calls == 24
    assert large.seconds == pytest.approx(0.05 + 20 * 0.2 + 4 * 0.8 + 0.3 + 0.8 + 1.2)
    refined = pace.load(picture(refiner=RefinerPass("refiner", steps=20, switch_at=0.8)))
    assert refined is not None
    assert refined.calls == 16 + 4
    assert refined.seconds == pytest.approx(0.05 + 20 * 0.2 + 0.3)


# ---- when a job starts and ends


def test_a_free_slot_starts_at_once_even_when_nothing_is_known() -> None:
    assert predict([], [], [None], slots=4) == Predicted(queue_s=0.0, run_s=None)
    assert predict([], [None] * 3, [None], slots=4) == Predicted(queue_s=0.0, run_s=None)
    assert predict([], [None] * 4, [None], slots=4) == Predicted(None, None)
    known = predict([], [], [Load(10, 0.1, 0.2, 0.3)], slots=4)
    assert known.queue_s == 0
    assert known.run_s == pytest.approx(1.5)


def test_a_full_device_frees_a_slot_when_the_shortest_ends() -> None:
    running = [Load(10, 0.1), Load(4, 0.1, last_s=0.5)]
    answer = predict(running, [], [Load(3, 0.1)], slots=2)
    assert answer.queue_s == pytest.approx(4 * 0.2 + 0.5)
    assert answer.run_s == pytest.approx(3 * 0.2)  # beside the other, which still runs


def test_what_waits_goes_first() -> None:
    answer = predict([Load(5, 0.1)], [Load(7, 0.1), Load(2, 0.1)], [Load(1, 0.1)], slots=1)
    assert answer.queue_s == pytest.approx(1.4)
    assert answer.run_s == pytest.approx(0.1)


def test_more_ahead_never_means_an_earlier_start_and_the_wait_is_bounded_by_the_work_ahead() -> None:
    chosen = random.Random(4)
    for _ in range(200):
        loads = [Load(chosen.randint(1, 40), chosen.uniform(0.01, 0.4), last_s=chosen.random()) for _ in range(9)]
        slots = chosen.randint(1, 5)
        running, waiting, new = loads[:slots], loads[slots:8], loads[8:]
        waits = [predict(running, waiting[:count], new, slots=slots).queue_s or 0.0 for count in range(9 - slots)]
        assert all(sooner <= later + 1e-9 for sooner, later in pairwise(waits))
        whole = predict(running, waiting, new, slots=slots)
        assert whole.queue_s is not None
        assert whole.run_s is not None
        ahead = sum(load.seconds for load in loads[:8])
        assert 0 < whole.queue_s <= ahead + 1e-9
        assert new[0].seconds - 1e-9 <= whole.run_s
        assert whole.queue_s + whole.run_s <= ahead + new[0].seconds + 1e-9


class SyntheticDevice:
    """A device of known speed with step-level batching, as the engine has it, on a clock of its own."""

    def __init__(self, row_s: float, fixed_s: float, decode_s: float, slots: int) -> None:
        self.row_s, self.fixed_s, self.decode_s, self.slots = row_s, fixed_s, decode_s, slots
        self.now = 0.0

    def call_s(self, rows: int) -> float:
        return self.fixed_s + self.row_s * rows

    def play(self, steps: list[int]) -> tuple[list[float], list[float]]:
        """Guided pictures in order: when each got its slot and when each was decoded."""
        queue, under_way = list(enumerate(steps)), dict[int, int]()
        starts, ends = [0.0] * len(steps), [0.0] * len(steps)
        while queue or under_way:
            while queue and len(under_way) < self.slots:
                i, count = queue.pop(0)
                under_way[i] = count
                starts[i] = self.now
            self.now += self.call_s(2 * len(under_way))
            for i in list(under_way):
                under_way[i] -= 1
                if not under_way[i]:
                    del under_way[i]
                    self.now += self.decode_s
                    ends[i] = self.now
        return starts, ends


@pytest.mark.parametrize("seed", range(5))
def test_predictions_are_right_to_a_tenth_on_a_device_of_known_speed(seed: int) -> None:
    chosen = random.Random(seed)
    device = SyntheticDevice(row_s=0.05, fixed_s=0.02, decode_s=0.2, slots=4)
    pace = Pace()
    for rows in (2, 4, 6, 8):
        for noise in (30.0, 0.98, 1.02, 1.0, 0.99):  # the first call of a size is slow
            pace.ran("unet", 512, 512, rows, device.call_s(rows) * noise)
    for _ in range(3):
        pace.ran("vae_decode", 512, 512, 1, device.decode_s)
    steps = [chosen.randint(4, 40) for _ in range(16)]
    starts, ends = device.play(steps)
    loads = [pace.load(picture(steps=count), rows_together=8) for count in steps]
    for i in range(len(steps)):
        answer = predict([], loads[:i], loads[i : i + 1], slots=4)
        assert answer.queue_s == pytest.approx(starts[i], rel=0.1, abs=0.1)
    # the last one's neighbours end and nobody takes their place, so that its batch shrinks: within a third
    answer = predict([], loads[:-1], loads[-1:], slots=4)
    assert answer.run_s is not None
    assert answer.run_s == pytest.approx(ends[-1] - starts[-1], rel=0.34)
