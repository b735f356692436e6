from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from inference.engine.counting import count_steps, steps_kept
from inference.engine.types import HiresPass, InitPicture, RefinerPass


@pytest.mark.parametrize(
    ("steps", "strength", "kept"), [(10, 1.0, 10), (10, 0.5, 5), (10, 0.01, 1), (1, 0.9, 1), (7, 0.99, 6)]
)
def test_strength_is_a_share_of_the_steps(steps: int, strength: float, kept: int) -> None:
    assert steps_kept(steps, strength) == kept


def test_steps_are_known_beforehand(make_spec: Any) -> None:
    half = InitPicture(np.zeros((128, 128, 3), np.uint8), 0.5)
    assert count_steps(make_spec(steps=10)) == (10, 0, 0)
    assert count_steps(make_spec(steps=10, init=half)) == (5, 0, 0)
    rich = make_spec(steps=10, hires=HiresPass(256, 256, 10, 0.3), refiner=RefinerPass("r", 10, 0.8))
    assert count_steps(rich) == (8, 2, 3)
