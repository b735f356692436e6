from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inference.engine.types import HiresPass, InitPicture, LoraUsed, PictureSpec, RefinerPass
from inference.infotext import DrawnWith, infotext, quote, sampler_name
from models.version import VERSION
from tests.support.fake_engine import DEFAULT_INFO, REFINER

SPEC = PictureSpec("a cat, (sun:1.2)", "blurry", 512, 768, 20, 7.0, 5, "euler_a")
INFO = replace(DEFAULT_INFO, checkpoint="tiny", sha256="0123456789abcdef" * 4)
DRAWN = DrawnWith(INFO)


def last_line(spec: PictureSpec, drawn: DrawnWith = DRAWN) -> str:
    return infotext(spec, drawn).splitlines()[-1]


def test_a_plain_picture() -> None:
    assert infotext(SPEC, DRAWN) == (
        "a cat, (sun:1.2)\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model hash: 0123456789, Model: tiny, "
        f"Version: IGen {VERSION}"
    )


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert len(infotext(replace(SPEC, negative_prompt=""), DRAWN).splitlines()) == 2


def test_a_checkpoint_without_a_hash_shows_none() -> None:
    assert "Model hash" not in infotext(SPEC, DrawnWith(replace(INFO, sha256="")))


def test_img2img_and_hires() -> None:
    init = InitPicture(np.zeros((768, 512, 3), np.uint8), 0.4)
    assert "Model: tiny, Denoising strength: 0.4, Version" in last_line(replace(SPEC, init=init))
    hires = HiresPass(1024, 1536, 12, 0.55, "latent")
    text = "Denoising strength: 0.55, Hires upscale: 2, Hires steps: 12, Hires upscaler: Latent"
    assert text in last_line(replace(SPEC, hires=hires))
    uneven = last_line(replace(SPEC, hires=replace(hires, width=768)))
    assert "Hires resize: 768x1536" in uneven


def test_a_refiner() -> None:
    spec = replace(SPEC, refiner=RefinerPass("fake-refiner", 20, 0.8))
    assert "Refiner: fake-refiner [2222222222], Refiner switch at: 0.8" in last_line(
        spec, replace(DRAWN, refiner=REFINER)
    )


def test_loras_stand_in_the_prompt_and_their_hashes_behind() -> None:
    drawn = DrawnWith(INFO, None, (LoraUsed("red", 0.8, "a" * 64), LoraUsed("blue", -1.0, "b" * 64)))
    text = infotext(SPEC, drawn)
    assert text.startswith("a cat, (sun:1.2) <lora:red:0.8> <lora:blue:-1>\n")
    assert 'Lora hashes: "red: aaaaaaaaaaaa, blue: bbbbbbbbbbbb"' in text


@pytest.mark.parametrize(
    ("value", "written"),
    [("plain", "plain"), ("a, b", '"a, b"'), ("a:b", '"a:b"'), ('a\n"b"', '"a\\n\\"b\\""'), ("é:", '"é:"')],
)
def test_values_that_hold_a_separator_are_quoted(value: str, written: str) -> None:
    assert quote(value) == written


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("K_EULER", ("Euler", "")),
        ("dpmpp_2m_karras", ("DPM++ 2M", "Karras")),
        ("ddim", ("DDIM", "")),
        ("DPM++ 2M", ("DPM++ 2M", "Uniform")),
        ("odd", ("odd", "")),
    ],
)
def test_samplers_have_the_names_that_viewers_know(ours: str, theirs: tuple[str, str]) -> None:
    assert sampler_name(ours) == theirs
    assert ("Schedule type: Karras" in last_line(replace(SPEC, scheduler=ours))) == (theirs[1] == "Karras")
