from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from inference.engine import checkpoint as module
from inference.engine.checkpoint import load_checkpoint, weights_sha256
from inference.engine.locate import locate
from inference.engine.parts import load_parts
from inference.engine.types import CheckpointError
from tests.support.checkpoints import (
    CATALOGUE,
    TINY,
    as_hub_cache,
    as_shards,
    as_variant,
    change_weights,
    copy_tiny,
    edit_json,
    weights_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_tiny(tmp_path / "copy")


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(str(folder), None, (), device="cpu")


def assert_same_weights(found: Checkpoint, expected: Checkpoint) -> None:
    for one, other in zip(
        (found.unet, found.vae, *found.text_encoders),
        (expected.unet, expected.vae, *expected.text_encoders),
        strict=True,
    ):
        wanted = other.state_dict()
        assert one.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in one.state_dict().items())


def test_the_bundled_checkpoint_is_fp32_on_a_cpu_and_ready_to_draw(checkpoint: Checkpoint) -> None:
    assert (checkpoint.info.checkpoint, checkpoint.info.dtype, checkpoint.info.device) == ("tiny", "float32", "cpu")
    assert checkpoint.info.demonstration
    assert {"python", "torch", "diffusers", "transformers"} <= checkpoint.info.versions.keys()
    for part in (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders):
        assert not part.training
        assert not any(tensor.requires_grad for tensor in part.parameters())
        assert {tensor.dtype for tensor in part.parameters()} == {torch.float32}


def test_the_bundled_checkpoint_loads_by_plain_diffusers_and_draws() -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(str(TINY))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    picture = pipeline("a red circle", num_inference_steps=2, generator=generator, output_type="np").images[0]
    assert picture.shape == (128, 128, 3)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.01


def test_loading_says_nothing_on_standard_error_and_is_cheap() -> None:
    program = (
        "import time, torch; from pathlib import Path; from inference.engine.checkpoint import load_checkpoint\n"
        f"load = lambda: load_checkpoint('tiny', None, (Path({str(CATALOGUE)!r}),), device='cpu')\n"
        "torch.set_num_threads(1); load(); started = time.process_time(); load()\n"
        "print(time.process_time() - started)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 2  # seconds of one core; the first load, not counted, also imports the libraries


@pytest.mark.parametrize("parts", [PARTS, ("unet",), ("vae", "text_encoder")])
def test_a_variants_names_load_the_same_weights(folder: Path, checkpoint: Checkpoint, parts: tuple[str, ...]) -> None:
    as_variant(folder, *parts)
    assert_same_weights(load(folder), checkpoint)


@pytest.mark.parametrize("part", PARTS)
def test_shards_load_the_same_weights(folder: Path, checkpoint: Checkpoint, part: str) -> None:
    as_shards(folder, part, 3)
    assert_same_weights(load(folder), checkpoint)


def test_names_as_older_libraries_saved_them_load_the_same_weights(folder: Path, checkpoint: Checkpoint) -> None:
    """SDXL base itself: `text_model.` before every name, and a buffer that is no weight any more."""
    change_weights(
        weights_of(folder, "text_encoder"),
        lambda tensors: {
            **{f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in tensors.items()},
            "text_model.embeddings.position_ids": torch.arange(77)[None],
        },
    )
    assert_same_weights(load(folder), checkpoint)


def test_a_snapshot_of_a_hub_cache_loads_by_its_id(tmp_path: Path, checkpoint: Checkpoint) -> None:
    as_hub_cache(TINY, tmp_path / "hub", "org/sdxl-tiny")
    loaded = load_checkpoint("org/sdxl-tiny", None, (CATALOGUE, tmp_path), device="cpu")
    assert_same_weights(loaded, checkpoint)
    assert loaded.info.sha256 == checkpoint.info.sha256
    assert loaded.info.defaults == checkpoint.info.defaults


def test_the_fingerprint_changes_with_every_part_and_with_nothing_else(folder: Path, checkpoint: Checkpoint) -> None:
    def digest() -> str:
        return weights_sha256(locate(str(folder), None, ()))

    seen = {digest()}
    assert seen == {checkpoint.info.sha256}
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights_of(TINY, "vae").read_bytes())
    (folder / "vae_1_0").mkdir()
    (folder / "vae_1_0" / "diffusion_pytorch_model.safetensors").write_bytes(b"never loaded")
    (folder / "whole.safetensors").write_bytes(b"never loaded")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never loaded")
    edit_json(folder / "igen.json", name="renamed")
    assert digest() in seen
    for number, part in enumerate(PARTS, start=2):
        change_weights(
            weights_of(folder, part),
            lambda tensors: {**tensors, min(tensors): tensors[min(tensors)] + 1},
        )
        seen.add(digest())
        assert len(seen) == number


def test_a_weight_file_that_vanishes_while_it_is_read_is_said_so(folder: Path) -> None:
    located = locate(str(folder), None, ())
    weights_of(folder, "vae").unlink()
    with pytest.raises(CheckpointError, match=r"vae/diffusion_pytorch_model\.safetensors cannot be read"):
        weights_sha256(located)


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_that_is_missing_is_never_made_up(folder: Path, part: str) -> None:
    change_weights(
        weights_of(folder, part),
        lambda tensors: {key: tensors[key] for key in sorted(tensors)[1:]},
    )
    with pytest.raises(CheckpointError, match=rf"copy: {part} lacks 1 of its weights, the first is "):
        load(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_of_another_shape_is_refused_on_one_line(folder: Path, part: str) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = max(tensors, key=lambda name: tensors[name].ndim)
        return {**tensors, key: torch.cat([tensors[key], tensors[key]])}

    change_weights(weights_of(folder, part), widen)
    with pytest.raises(CheckpointError, match=rf"copy: {part} cannot be loaded: ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= module.MAX_MESSAGE


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer/tokenizer.json", "{}"),
        ("tokenizer_2/tokenizer.json", "not json"),
        ("unet/config.json", None),
        ("scheduler/scheduler_config.json", '{"_class_name": "EulerDiscreteScheduler", "beta_schedule": "none"}'),
    ],
)
def test_a_broken_part_is_named(folder: Path, file: str, content: str | None) -> None:
    if content is None:
        edit_json(folder / file, down_block_types=["NoSuchBlock", "NoSuchBlock"])
    else:
        (folder / file).write_text(content)
    part = file.partition("/")[0]
    with pytest.raises(CheckpointError, match=rf"copy: {part} cannot be loaded: ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_code_that_lies_in_the_folder_is_never_run(folder: Path, tmp_path: Path, checkpoint: Checkpoint) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\nraise SystemExit(3)\n"
    for part in (".", "unet", "tokenizer", "text_encoder", "scheduler"):
        for name in ("pipeline.py", "modeling.py", "evil.py", f"{part}.py", "__init__.py"):
            (folder / part / name).write_text(code)
    for part in ("tokenizer", "tokenizer_2"):
        edit_json(
            folder / part / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
            tokenizer_class="EvilTokenizer",
        )
    assert_same_weights(load(folder), checkpoint)
    edit_json(folder / "model_index.json", unet=["evil", "Unet"])
    with pytest.raises(CheckpointError, match=r"evil\.Unet"):
        load(folder)
    assert not marker.exists()


def test_a_default_sampler_that_there_is_not_is_refused(folder: Path) -> None:
    edit_json(folder / "igen.json", defaults={"scheduler": "no-such"})
    with pytest.raises(CheckpointError, match=r"igen\.json: scheduler 'no-such' is not one of"):
        load(folder)


def test_errors_are_one_line_of_bounded_length() -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("two\nlines" + "x" * 5000, None, (CATALOGUE,))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= module.MAX_MESSAGE


@pytest.mark.parametrize(
    ("upcast", "dtype", "expected"),
    [
        (True, torch.float16, torch.float32),
        (False, torch.float16, torch.float16),
        (True, torch.float32, torch.float32),
    ],
)
def test_a_vae_that_overflows_in_half_stays_in_single(
    folder: Path, upcast: bool, dtype: torch.dtype, expected: torch.dtype
) -> None:
    edit_json(folder / "vae" / "config.json", force_upcast=upcast)
    parts = load_parts(locate(str(folder), None, ()), dtype)
    assert parts.vae.dtype == expected
    parts.vae.to(torch.float16)
    module._place(parts, torch.device("cpu"), dtype)
    assert {tensor.dtype for tensor in parts.vae.parameters()} == {expected}
    for part in (parts.unet, parts.text_encoder, parts.text_encoder_2):
        assert {tensor.dtype for tensor in part.parameters()} == {dtype}
    assert parts.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


class FullDevice:
    """A part that the device has no memory for."""

    config = SimpleNamespace(force_upcast=False)

    def requires_grad_(self, *, requires_grad: bool) -> FullDevice:
        return self

    def eval(self) -> FullDevice:
        return self

    def parameters(self) -> list[torch.Tensor]:
        return []

    buffers = parameters

    def to(self, **_keywords: Any) -> FullDevice:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_device_that_is_too_small_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    full = FullDevice()
    parts = SimpleNamespace(unet=full, vae=full, text_encoder=full, text_encoder_2=full)
    monkeypatch.setattr(module, "load_parts", lambda *_: parts)
    with pytest.raises(CheckpointError, match="tiny does not fit into the memory of cpu"):
        load_checkpoint("tiny", None, (CATALOGUE,), device="cpu")


def test_each_weight_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import UNet2DConditionModel

    calls: list[float] = []
    original = UNet2DConditionModel.from_pretrained

    def counted(*args: Any, **keywords: Any) -> Any:
        calls.append(time.monotonic())
        return original(*args, **keywords)

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", counted)
    load_checkpoint("tiny", None, (CATALOGUE,), device="cpu")
    assert len(calls) == 1
