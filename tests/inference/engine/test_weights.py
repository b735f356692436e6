from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from inference.engine.layout import choose_weights
from inference.engine.types import CheckpointError
from inference.engine.weights import file_sha256, fingerprint, read_header
from tests.support.checkpoints import TINY, as_shards, as_variant, copy_tiny, weights_of

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_tiny(tmp_path / "copy")


def names(folder: Path, *, half: bool) -> dict[str, tuple[str | None, list[str]]]:
    chosen = choose_weights("copy", folder, half=half)
    return {part: (weights.variant, [file.name for file in weights.files]) for part, weights in chosen.items()}


def test_half_precision_files_are_preferred_only_where_asked_for(folder: Path) -> None:
    plain = weights_of(folder, "unet")
    half = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    half.write_bytes(plain.read_bytes())
    assert names(folder, half=False)["unet"] == (None, [plain.name])
    assert names(folder, half=True)["unet"] == ("fp16", [half.name])
    assert names(folder, half=True)["vae"] == (None, [plain.name])


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_may_mix_variants(folder: Path, half: bool) -> None:
    as_variant(folder, "unet", "text_encoder_2")
    variants = {part: variant for part, (variant, _) in names(folder, half=half).items()}
    assert variants == {"unet": "fp16", "vae": None, "text_encoder": None, "text_encoder_2": "fp16"}


def test_shards_are_found_by_their_index(folder: Path) -> None:
    shards = as_shards(folder, "unet", 3)
    assert names(folder, half=True)["unet"] == (None, [shard.name for shard in shards])
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors is missing"):
        choose_weights("copy", folder, half=False)


@pytest.mark.parametrize("target", ["evil.bin", "../vae/diffusion_pytorch_model.safetensors", "/etc/x.safetensors"])
def test_an_index_of_shards_may_name_safetensors_beside_it_alone(folder: Path, target: str) -> None:
    as_shards(folder, "unet")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": target}}))
    with pytest.raises(CheckpointError, match="beside it"):
        choose_weights("copy", folder, half=False)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_shards_is_refused(folder: Path, content: object) -> None:
    as_shards(folder, "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        choose_weights("copy", folder, half=False)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("suffix", [".bin", ".ckpt"])
def test_one_part_with_a_pickle_alone_is_refused(folder: Path, part: str, suffix: str) -> None:
    path = weights_of(folder, part)
    path.rename(path.with_suffix(suffix))
    with pytest.raises(CheckpointError, match=f"{part} has its weights only as a pickle"):
        choose_weights("copy", folder, half=False)


def test_a_pickle_beside_safetensors_is_left_alone(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert names(folder, half=False)["unet"][1] == ["diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_weights_is_named(folder: Path, part: str) -> None:
    weights_of(folder, part).unlink()
    with pytest.raises(CheckpointError, match=rf"{part} has no \w+\.safetensors"):
        choose_weights("copy", folder, half=False)


@pytest.mark.parametrize("keep", [0, 5, 8, 5000, -1])
def test_a_file_cut_short_is_said_so(folder: Path, keep: int) -> None:
    path = weights_of(folder, "vae")
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"vae/diffusion_pytorch_model\.safetensors is (cut short|damaged)"):
        choose_weights("copy", folder, half=False)


@pytest.mark.parametrize(
    "content",
    [
        b"\x05\x00\x00\x00\x00\x00\x00\x00[1,2]",
        b"\x05\x00\x00\x00\x00\x00\x00\x00{{{{{",
        b'\x0a\x00\x00\x00\x00\x00\x00\x00{"a": {}}  ',
        b"\xff" * 64,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        b"<!DOCTYPE html><html><body>Not found</body></html>",
    ],
)
def test_what_is_no_safetensors_file_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors is"):
        read_header(path)


def test_bytes_too_many_are_damage_too(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(1)}, path, {"note": "kept apart"})
    assert set(read_header(path)) == {"a", "b"}
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_header(path)


def test_only_a_real_blob_of_a_hub_cache_lends_its_name(tmp_path: Path) -> None:
    content, fake = b"content", "f" * 64
    digest = hashlib.sha256(content).hexdigest()
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / fake).write_bytes(content)
    (blobs / "short").write_bytes(content)
    (tmp_path / fake).write_bytes(content)
    (tmp_path / "in-cache").symlink_to(blobs / fake)
    (tmp_path / "git-blob").symlink_to(blobs / "short")
    (tmp_path / "elsewhere").symlink_to(tmp_path / fake)
    assert file_sha256(tmp_path / "in-cache") == fake
    assert file_sha256(tmp_path / "git-blob") == digest
    assert file_sha256(tmp_path / "elsewhere") == digest
    assert file_sha256(tmp_path / fake) == digest


def test_the_fingerprint_of_one_file_is_its_digest_and_of_several_depends_on_each(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert fingerprint(tmp_path, [first]) == hashlib.sha256(b"1").hexdigest()
    both = fingerprint(tmp_path, [second, first])
    assert both == fingerprint(tmp_path, [first, second])
    second.write_bytes(b"3")
    assert fingerprint(tmp_path, [first, second]) != both
    assert fingerprint(TINY, [weights_of(TINY, "vae")]) == file_sha256(weights_of(TINY, "vae"))
