from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from inference.engine import hub
from inference.engine.checkpoint import load_checkpoint
from inference.engine.hub import fetch
from inference.engine.single_file import SDXL_BASE, SDXL_BASE_COMMIT
from inference.engine.types import CheckpointError
from tests.support.checkpoints import (
    COMMIT,
    TINY,
    as_hub_cache,
    as_shards,
    as_variant,
    copy_tiny,
    edit_json,
    save_tiny_refiner,
    weights_of,
)
from tests.support.hub import FakeHub
from tests.support.original_layout import save_original_layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "org/sdxl-tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's cache of the hub, empty; the library reads its place from the environment at import."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_tiny(tmp_path / "copy")


@pytest.fixture
def remote(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub(folder, NAME, COMMIT)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.close()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_pinned_id_is_fetched_once_and_then_read_from_the_cache(remote: FakeHub, cache: Path) -> None:
    (remote.folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (remote.folder / "unet" / "code.py").write_text("raise SystemExit(3)")
    (remote.folder / "vae_1_0").mkdir()
    (remote.folder / "vae_1_0" / "diffusion_pytorch_model.safetensors").write_bytes(b"never loaded")
    folder = fetch(NAME, COMMIT)
    assert folder == cache / "models--org--sdxl-tiny" / "snapshots" / COMMIT
    assert files(folder) == files(TINY)
    asked = len(remote.requests)
    assert fetch(NAME, COMMIT) == folder
    loaded = load_checkpoint(NAME, COMMIT, (), device="cpu")
    assert (loaded.info.checkpoint, loaded.info.defaults.width) == ("tiny", 128)
    assert len(remote.requests) == asked


def test_half_precision_is_fetched_where_it_is_offered(remote: FakeHub) -> None:
    plain = weights_of(remote.folder, "vae")
    plain.with_name("diffusion_pytorch_model.fp16.safetensors").write_bytes(plain.read_bytes())
    as_variant(remote.folder, "unet")
    found = files(fetch(NAME, COMMIT))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in found
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in found
    assert "vae/diffusion_pytorch_model.safetensors" not in found
    assert "text_encoder/model.safetensors" in found


def test_shards_are_fetched_with_their_index(remote: FakeHub) -> None:
    shards = as_shards(remote.folder, "unet", 2)
    assert {f"unet/{shard.name}" for shard in shards} <= files(fetch(NAME, COMMIT))


def test_a_refiner_is_fetched_without_the_parts_that_it_lacks(cache: Path, remote: FakeHub, tmp_path: Path) -> None:
    remote.folder = save_tiny_refiner(tmp_path / "refiner")
    assert files(fetch(NAME, COMMIT)) == files(remote.folder)
    assert not any("/text_encoder/" in request or "/tokenizer/" in request for request in remote.requests)


def test_a_fetch_that_was_cut_off_is_taken_up_again(remote: FakeHub) -> None:
    folder = fetch(NAME, COMMIT)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    remote.requests.clear()
    assert fetch(NAME, COMMIT) == folder
    assert files(folder) == files(TINY)
    assert {request.rpartition("/")[2] for request in remote.requests} <= {
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
    }


def test_a_description_alone_is_a_few_small_files(remote: FakeHub) -> None:
    found = files(fetch(NAME, COMMIT, weights=False))
    assert not any(name.endswith(".safetensors") for name in found)
    assert "tokenizer/tokenizer.json" in found


def test_a_single_file_alone_is_described_by_sdxl_base_from_the_hub(remote: FakeHub, tmp_path: Path) -> None:
    remote.name, remote.commit = SDXL_BASE, SDXL_BASE_COMMIT
    (remote.folder / "igen.json").unlink()
    (tmp_path / "models").mkdir()
    file = save_original_layout(TINY, tmp_path / "models" / "alone.safetensors")
    assert load_checkpoint(str(file), None, (), device="cpu").info.checkpoint == "alone"
    assert not any("model.safetensors" in request for request in remote.requests)


def test_what_is_refused_is_refused_before_its_weights_are_fetched(remote: FakeHub) -> None:
    edit_json(remote.folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(CheckpointError, match="is a FluxPipeline"):
        fetch(NAME, COMMIT)
    assert {request.rpartition("/")[2] for request in remote.requests} == {"model_index.json"}


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_are_not_fetched(remote: FakeHub, part: str) -> None:
    path = weights_of(remote.folder, part)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=f"no safetensors weights of its {part}; pickles are not loaded"):
        fetch(NAME, COMMIT)
    assert not any(".bin" in request for request in remote.requests)


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("org/nothing", COMMIT, "org/nothing at .* could not be fetched"),
        (NAME, "f" * 40, "could not be fetched from the hub: f{40} is not a valid git identifier"),
    ],
)
def test_what_the_hub_has_not_is_said_so(remote: FakeHub, name: str, revision: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(name, revision, (), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(remote: FakeHub) -> None:
    (remote.folder / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{NAME} at {COMMIT} has no vae/config\.json"):
        fetch(NAME, COMMIT)


@pytest.mark.parametrize("fault", [401, 403])
def test_a_hub_that_says_no_is_an_error_at_once(remote: FakeHub, fault: int) -> None:
    remote.fault = fault
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=f"{NAME} at {COMMIT} could not be fetched from the hub"):
        fetch(NAME, COMMIT)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("fault", [503, "hang"])
def test_a_hub_that_does_not_answer_is_an_error_in_bounded_time(
    remote: FakeHub, fault: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SMALL_FILE_S", 1.0)
    remote.fault = fault
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"did not answer within 1 s"):
        fetch(NAME, COMMIT)
    assert time.monotonic() - started < 10
    remote.fault = 404  # so that the client's own retries end


def test_without_a_network_the_cache_is_enough(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"{NAME} at {COMMIT} could not be fetched from the hub: "):
        fetch(NAME, COMMIT)
    snapshot = as_hub_cache(TINY, cache, NAME, main=False)
    assert fetch(NAME, COMMIT) == snapshot


@pytest.mark.slow
def test_the_environment_says_where_hub_and_cache_are(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, since the library reads the environment when it is imported."""
    program = (
        "from inference.engine.checkpoint import load_checkpoint\n"
        f"print(load_checkpoint({NAME!r}, {COMMIT!r}, (), device='cpu').info.checkpoint)"
    )
    server = FakeHub(folder, NAME, COMMIT)
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "error", "-c", program]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        server.close()
    assert (done.returncode, done.stdout, done.stderr) == (0, "tiny\n", "")
    assert files(tmp_path / "cache" / "models--org--sdxl-tiny" / "snapshots" / COMMIT) == files(TINY)
