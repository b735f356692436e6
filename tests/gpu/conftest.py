"""On a GPU full-size SDXL with random weights in fp16; its twin on a CPU is the bundled checkpoint in float32."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from scripts.gpubench import accuracy, sdxl

if TYPE_CHECKING:
    from scripts.gpubench.contestants import Pixels
    from scripts.gpubench.sdxl import Models

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@cache
def _on(kind: str) -> Models:
    return sdxl.full_size(torch.device(kind)) if kind == "cuda" else sdxl.tiny(torch.device(kind))


@pytest.fixture(scope="session")
def models(device: torch.device) -> Models:
    return _on(device.type)


@pytest.fixture(scope="session")
def card_models() -> Models:
    """For checks that have no twin, all marked `gpu`."""
    return _on("cuda")


@pytest.fixture(scope="session")
def exact(models: Models) -> Pixels:
    """Stock diffusers' picture of the same weights in float32."""
    return accuracy.reference(models, models.size)
