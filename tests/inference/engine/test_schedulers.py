from __future__ import annotations

import pytest

from inference.engine.schedulers import ALIASES, KINDS, resolve_name
from inference.engine.types import UnknownSchedulerError

WORKER_SDXL = {
    "PNDM": "pndm",
    "KLMS": "lms",
    "DDIM": "ddim",
    "K_EULER": "euler",
    "DPMSolverMultistep": "dpmpp_2m",
    "K_EULER_ANCESTRAL": "euler_a",
    "DPMSolverSinglestep": "dpmpp_singlestep",
}
A1111 = {
    "Euler": "euler",
    "Euler a": "euler_a",
    "Heun": "heun",
    "LMS": "lms",
    "PLMS": "pndm",
    "DDIM": "ddim",
    "LCM": "lcm",
    "UniPC": "unipc",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M Karras": "dpmpp_2m_karras",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Karras": "dpmpp_2m_sde_karras",
}


@pytest.mark.parametrize(("given", "ours"), [*WORKER_SDXL.items(), *A1111.items(), (" euler ", "euler")])
def test_aliases(given: str, ours: str) -> None:
    assert resolve_name(given) == ours


@pytest.mark.parametrize(
    ("given", "spacing", "ours"),
    [
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE", "karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M Karras", "Karras", "dpmpp_2m_karras"),
        ("Euler", "Karras", "euler_karras"),
        ("Euler", "Automatic", "euler"),
        ("Euler a", "", "euler_a"),
    ],
)
def test_a1111s_newer_pair_of_sampler_and_spacing(given: str, spacing: str, ours: str) -> None:
    assert resolve_name(given, spacing) == ours


@pytest.mark.parametrize(
    ("given", "spacing", "says"),
    [
        ("DDIM", "Karras", "has no Karras spacing; those that have are dpmpp_2m, dpmpp_2m_sde, euler"),
        ("Euler", "Polyexponential", "not by 'Polyexponential'"),
    ],
)
def test_a_spacing_that_cannot_be_honoured_is_refused(given: str, spacing: str, says: str) -> None:
    with pytest.raises(UnknownSchedulerError, match=says):
        resolve_name(given, spacing)


@pytest.mark.parametrize("given", ["", "DPM fast", "euler; drop table", "None", "ler"])
def test_an_unknown_name_is_refused_and_the_known_are_named(given: str) -> None:
    with pytest.raises(UnknownSchedulerError, match="euler, euler_a, ddim"):
        resolve_name(given)


def test_every_alias_is_in_lower_case_and_leads_to_a_kind() -> None:
    assert all(alias == alias.lower() and name in KINDS for alias, name in ALIASES.items())
    assert not set(ALIASES) & set(KINDS)
