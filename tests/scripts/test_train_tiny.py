"""The tiny checkpoint's training: its renderer, captions, tokenizer, resumption and export."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scripts.train_tiny.captions import caption, describe, vocabulary
from scripts.train_tiny.export import DEFAULTS
from scripts.train_tiny.pictures import (
    FAULTS,
    SCENES,
    TIMES,
    Picture,
    ScenePicture,
    ShapePicture,
    held_out,
    held_out_pictures,
    sample_picture,
)
from scripts.train_tiny.renderer import render
from scripts.train_tiny.tokens import build_tokenizers
from scripts.train_tiny.training import SMOKE_TRAINING, build_parts, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    return build_tokenizers(vocabulary())


def test_same_picture_renders_to_the_same_bytes() -> None:
    for index in range(40):
        first, second = (render(sample_picture(3, index)) for _ in range(2))
        assert first.shape == (128, 128, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)


def test_other_seeds_give_other_pictures() -> None:
    assert any(sample_picture(0, n).subject != sample_picture(1, n).subject for n in range(5))
    subject = ScenePicture("mountains")
    assert not np.array_equal(render(Picture(subject, None, (0, 1))), render(Picture(subject, None, (0, 2))))


@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_renders_at_every_time(scene: str) -> None:
    for time in TIMES:
        picture = render(Picture(ScenePicture(scene, time, moon=time == "night"), None, (0, 0)))
        assert picture.std() > 2


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_change_the_picture(fault: str) -> None:
    subject = ShapePicture("star", "red", "blue")
    clean, spoilt = (render(Picture(subject, which, (0, 0))) for which in (None, fault))
    assert np.abs(clean.astype(int) - spoilt.astype(int)).mean() > 1


def test_training_stream_never_shows_a_held_out_combination() -> None:
    subjects = [sample_picture(seed, index).subject for seed in (0, 1) for index in range(4000)]
    shapes = [subject for subject in subjects if isinstance(subject, ShapePicture)]
    assert len(shapes) > 4000
    assert not any(held_out(subject) for subject in shapes)


def test_held_out_pictures_are_many_different_and_fixed() -> None:
    chosen = held_out_pictures(400)
    assert len(set(chosen)) == 400
    assert all(held_out(subject) for subject in chosen)
    assert chosen == held_out_pictures(400)


def test_captions_name_what_the_picture_shows() -> None:
    subject = ShapePicture("triangle", "orange", "black", "small", "top left")
    wanted = "a small orange triangle in the top left corner on a black background"
    assert describe(subject) == wanted
    texts = [caption(Picture(subject, None, (0, 0)), np.random.default_rng(n)) for n in range(200)]
    assert 5 <= texts.count("") <= 40
    assert len(set(texts)) > 50
    assert all("triangle" in text for text in texts if text)


def test_spoilt_pictures_say_so() -> None:
    picture = Picture(ShapePicture("ring", "red", "blue"), "noisy", (0, 0))
    texts = {caption(picture, np.random.default_rng(n)) for n in range(100)} - {""}
    assert all(any(word in text for word in ("noisy", "grainy", "quality")) for text in texts)
    assert any("ring" not in text and "donut" not in text and "hoop" not in text for text in texts)


def test_known_words_are_single_tokens_and_any_text_tokenizes(tokenizers: tuple[Any, Any]) -> None:
    first, second = tokenizers
    for word in sorted(vocabulary()):
        if word.isalpha():
            assert len(first.tokenize(word)) == 1, word
    for text in ("zebra", "naïve café", "猫が好き", "🦊", "a\tb\nc", "100 %"):
        ids = first(text).input_ids
        assert first.unk_token_id not in ids[1:-1], text
    padded = first("a red ring", padding="max_length").input_ids
    assert len(padded) == first.model_max_length == 77
    assert (first.pad_token, second.pad_token, second.pad_token_id) == ("<|endoftext|>", "!", 0)


def test_too_long_a_caption_is_cut_to_the_context(tokenizers: tuple[Any, Any]) -> None:
    ids = tokenizers[0]("red " * 200, truncation=True).input_ids
    assert len(ids) == 77
    assert ids[-1] == tokenizers[0].eos_token_id


def _saved(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "unet.pt", weights_only=True)
    return state


def test_killed_and_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(SMOKE_TRAINING, whole, tmp_path / "out-whole")
    # Every stage stops after a step or so, as if killed right after a save, until all is done.
    runs = 1
    while not run(SMOKE_TRAINING, halves, tmp_path / "out-halves", stop_after=0.0):
        runs += 1
    assert runs == SMOKE_TRAINING.vae.steps + SMOKE_TRAINING.unet.steps - 1
    one, other = _saved(whole), _saved(halves)
    assert one["step"] == other["step"] == SMOKE_TRAINING.unet.steps
    for part in ("module", "ema"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())


def test_training_changes_the_weights_it_should(tmp_path: Path) -> None:
    training = replace(SMOKE_TRAINING, seed=5)
    assert run(training, tmp_path / "work", tmp_path / "out")
    start = build_parts(training)
    trained = _saved(tmp_path / "work")["module"]
    before = start.unet.state_dict()
    assert any(not torch.equal(value, trained[f"unet.{name}"]) for name, value in before.items())
    autoencoder = torch.load(tmp_path / "work" / "vae.pt", weights_only=True)["module"]
    for name, value in start.vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            assert torch.equal(value, autoencoder[name]), name


def test_export_loads_in_the_plain_pipeline(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    output = tmp_path / "tiny"
    output.mkdir()
    (output / "stale").write_text("replaced as a whole")
    assert run(SMOKE_TRAINING, tmp_path / "work", output)
    assert not (output / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "work"]
    assert json.loads((output / "igen.json").read_text())["defaults"] == DEFAULTS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = StableDiffusionXLPipeline.from_pretrained(output)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert getattr(pipeline, name).dtype == torch.float32, name
    assert pipeline.vae_scale_factor == 8
    assert not pipeline.config.force_zeros_for_empty_prompt
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle", negative_prompt="", num_inference_steps=2, guidance_scale=2.0).images[0]
    assert picture.size == (128, 128)
