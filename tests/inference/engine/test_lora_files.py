from __future__ import annotations

import hashlib
import json
import os
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from inference.engine import lora_files
from inference.engine.lora_files import lora_names, lora_path, read_lora
from inference.engine.types import LoraError, UnknownLoraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASE = "lora_unet_mid_block_attentions_0_proj_in"


def pair(base: str = BASE, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{base}.lora_down.weight": torch.ones(rank, 8), f"{base}.lora_up.weight": torch.ones(8, rank)}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor], name: str = "a", **metadata: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path, metadata or None)
        return path

    return write


def test_names_are_those_of_files_in_the_folder_itself(tmp_path: Path, save: Callable[..., Path]) -> None:
    outside = tmp_path / "outside.safetensors"
    folder = tmp_path / "loras"
    (folder / "sub").mkdir(parents=True)
    save(pair(), "outside")
    for name in ("B 2.safetensors", "a-1.5_x.safetensors", ".hidden.safetensors", "note.txt", "ü.safetensors"):
        (folder / name).touch()
    (folder / "sub" / "c.safetensors").touch()
    (folder / "folder.safetensors").mkdir()
    (folder / "out.safetensors").symlink_to(outside)
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "inside.safetensors").symlink_to("B 2.safetensors")
    assert lora_names(folder) == ("B 2", "a-1.5_x", "inside")
    for name in lora_names(folder):
        assert lora_path(folder, name).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "/etc/passwd",
        "a/b",
        "sub/c",
        "out",
        "loop",
        "a\n",
        "a\0",
        " a",
        "a" * 5000,
        "a.safetensors",
    ],
)
def test_a_name_is_no_path(tmp_path: Path, save: Callable[..., Path], name: str) -> None:
    save(pair())
    (tmp_path / "loras" / "sub").mkdir(parents=True)
    (tmp_path / "loras" / "sub" / "c.safetensors").touch()
    (tmp_path / "loras" / "out.safetensors").symlink_to(tmp_path / "a.safetensors")
    (tmp_path / "loras" / "loop.safetensors").symlink_to(tmp_path / "loras" / "loop.safetensors")
    with pytest.raises(UnknownLoraError, match="there is no LoRA"):
        lora_path(tmp_path / "loras", name)


def test_an_unknown_name_is_told_which_there_are(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"l{number:02}.safetensors").touch()
    with pytest.raises(UnknownLoraError, match=r"there is no LoRA 'x'; there are: l00, .*l19 and 10 more$"):
        lora_path(tmp_path, "x")
    for folder in (None, tmp_path / "missing"):
        with pytest.raises(UnknownLoraError, match="there are: none"):
            lora_path(folder, "x")


def test_a_file_is_read_with_its_digest(save: Callable[..., Path]) -> None:
    path = save({**pair(), f"{BASE}.alpha": torch.tensor(1.5), "something.else": torch.ones(1)})
    found = read_lora("a", path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(item.base, item.alpha) for item in found.pairs] == [(BASE, 1.5)]
    assert found.unused == ("something.else",)


def test_pefts_own_settings_are_read(save: Callable[..., Path]) -> None:
    path = save(pair(), lora_adapter_metadata=json.dumps({"unet.lora_alpha": 8}))
    assert read_lora("a", path).adapter == {"unet.lora_alpha": 8}
    for garbled in ("{", "[1]", "7"):
        assert read_lora("a", save(pair(), lora_adapter_metadata=garbled)).adapter == {}


def header(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (b"abc", "cut short"),
        (pickle.dumps({"a": 1}, protocol=2), "is a pickle"),
        (pickle.dumps({"a": "x" * 1000}, protocol=4), "is a pickle"),
        (b"PK\x03\x04" + b"\0" * 100, "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\xff" * 100, "cut short or no safetensors"),
        (header(b"[]"), "no safetensors"),
        (header(b"{}"), "holds no low-rank layers"),
        (header(b'{"a": 1}'), "damaged"),
        (header(b"[" * 100_000), "no safetensors"),
        (header(b'{"x.lora_A.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}'), "damaged"),
        (header(b'{"a": {"dtype": "NONE", "shape": [], "data_offsets": [0, 0]}}'), "damaged"),
    ],
)
def test_what_is_no_lora_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(LoraError, match=reason) as refused:
        read_lora("a", tmp_path / "a.safetensors")
    assert str(tmp_path) not in str(refused.value)


def test_a_header_or_file_beyond_the_limits_is_not_parsed(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(pair())
    monkeypatch.setattr(lora_files, "MAX_HEADER_BYTES", 50)
    with pytest.raises(LoraError, match="at most 50 are read"):
        read_lora("a", path)
    monkeypatch.setattr(lora_files, "MAX_FILE_BYTES", 50)
    with pytest.raises(LoraError, match="larger than 50 bytes"):
        read_lora("a", path)


def test_a_file_that_is_gone_or_locked_says_so(tmp_path: Path, save: Callable[..., Path]) -> None:
    with pytest.raises(UnknownLoraError, match="no longer there"):
        read_lora("a", tmp_path / "a.safetensors")
    with pytest.raises(LoraError, match="cannot be read: Is a directory"):
        read_lora("a", tmp_path)
    if os.getuid() != 0:
        path = save(pair())
        path.chmod(0)
        with pytest.raises(LoraError, match="cannot be read"):
            read_lora("a", path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (f"{BASE}.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        (f"{BASE}.hada_w1_a", "LoHa"),
        (f"{BASE}.lokr_w1", "LoKr"),
        (f"{BASE}.oft_blocks", "OFT"),
        (f"{BASE}.oft_diag", "OFT"),
        (f"{BASE}.on_input", "IA3"),
        (f"{BASE}.a1.weight", "GLoRA"),
        (f"{BASE}.diff", "full difference"),
        ("unet.conv_in.lora_B.bias", "biases"),
    ],
)
def test_other_adapters_are_refused_by_their_kind(save: Callable[..., Path], key: str, kind: str) -> None:
    with pytest.raises(LoraError, match=kind):
        read_lora("a", save({**pair(), key: torch.ones(1)}))


@pytest.mark.parametrize("half", ["down", "up"])
def test_half_a_pair_is_damage(save: Callable[..., Path], half: str) -> None:
    tensors = pair()
    del tensors[f"{BASE}.lora_{half}.weight"]
    with pytest.raises(LoraError, match="lacks its other half"):
        read_lora("a", save(tensors))


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.ones(2)])
def test_an_alpha_must_be_a_number(save: Callable[..., Path], alpha: torch.Tensor) -> None:
    with pytest.raises(LoraError, match="no finite number"):
        read_lora("a", save({**pair(), f"{BASE}.alpha": alpha}))


def test_embeddings_bundled_with_a_lora_are_unused(save: Callable[..., Path]) -> None:
    key = "bundle_emb.mine.string_to_param.*"
    assert read_lora("a", save({**pair(), key: torch.ones(1)})).unused == (key,)


def test_an_alpha_alone_is_unused(save: Callable[..., Path]) -> None:
    assert read_lora("a", save({**pair(), "other.alpha": torch.tensor(1)})).unused == ("other.alpha",)
