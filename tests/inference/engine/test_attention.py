from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from inference.engine.attention import KERNELS, attention_context, choose_attention
from inference.engine.checkpoint import load_checkpoint
from inference.engine.types import CheckpointError
from tests.support.checkpoints import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class RecordingUnet:
    """Remembers what was asked of its attention; `problem` is what its trial run of xformers throws."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.calls: list[str] = []
        self._problem = problem

    def enable_xformers_memory_efficient_attention(self) -> None:
        self.calls.append("xformers")
        if self._problem:
            raise self._problem

    def disable_xformers_memory_efficient_attention(self) -> None:
        self.calls.append("sdpa")


def install_xformers(folder: Path, monkeypatch: pytest.MonkeyPatch, ops: str) -> None:
    (folder / "xformers").mkdir()
    (folder / "xformers" / "__init__.py").touch()
    (folder / "xformers" / "ops.py").write_text(ops)
    for name in [name for name in sys.modules if name.partition(".")[0] == "xformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(("wanted", "device"), [("auto", CPU), ("sdpa", CPU), ("sdpa", CUDA)])
def test_sdpa_needs_nothing(wanted: str, device: torch.device) -> None:
    unet = RecordingUnet()
    assert choose_attention(unet, wanted, device) == "sdpa"
    assert unet.calls == []


def test_xformers_demanded_on_a_cpu_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"IGEN_ATTENTION asks for xformers.*CUDA"):
        load_checkpoint("tiny", None, (CATALOGUE,), device="cpu", attention="xformers")


def test_auto_on_a_cpu_is_sdpa_in_the_real_unet() -> None:
    loaded = load_checkpoint("tiny", None, (CATALOGUE,), device="cpu", attention="auto")
    assert loaded.info.attention == "sdpa"
    assert {type(processor).__name__ for processor in loaded.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def last(names: Sequence[str]) -> str:
    return names[-1]


def test_xformers_is_used_on_cuda_where_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_xformers(tmp_path, monkeypatch, "")
    unet = RecordingUnet()
    assert choose_attention(unet, "xformers", CUDA) == "xformers"
    assert unet.calls == ["xformers"]


@pytest.mark.parametrize(("choice", "calls"), [(-1, ["xformers"]), (0, ["xformers", "sdpa"])])
def test_auto_is_what_was_fastest(
    choice: int, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_xformers(tmp_path, monkeypatch, "")
    unet = RecordingUnet()
    asked: list[str] = []

    def fastest(names: Sequence[str]) -> str:
        asked.extend(names)
        return names[choice]

    assert choose_attention(unet, "auto", CUDA, fastest) == asked[choice]
    assert asked == ["sdpa", "cudnn", "flash", "efficient", "xformers"]
    assert unet.calls == calls


def test_auto_is_not_guessed_where_nobody_measures() -> None:
    unet = RecordingUnet()
    assert choose_attention(unet, "auto", CUDA) == "sdpa"
    assert unet.calls == []


@pytest.mark.parametrize("ops", ["raise OSError('built for another torch\\nand so on')", "import not_there"])
def test_an_xformers_that_does_not_import_is_passed_over(
    ops: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_xformers(tmp_path, monkeypatch, ops)
    assert choose_attention(RecordingUnet(), "auto", CUDA, last) == "efficient"
    with pytest.raises(CheckpointError, match="IGEN_ATTENTION asks for xformers") as caught:
        choose_attention(RecordingUnet(), "xformers", CUDA)
    assert "\n" not in str(caught.value)


def test_an_xformers_that_refuses_the_device_leaves_no_layer_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    unet = RecordingUnet(NotImplementedError("No operator found for this device"))
    assert choose_attention(unet, "auto", CUDA, last) == "efficient"
    assert unet.calls == ["xformers", "sdpa"]


def test_an_unset_message_still_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace())
    with pytest.raises(CheckpointError, match="MemoryError"):
        choose_attention(RecordingUnet(MemoryError()), "xformers", CUDA)


@pytest.mark.parametrize("name", ["sdpa", "cudnn", "flash", "efficient", "xformers"])
def test_every_kernel_gives_the_same_attention(name: str) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 2, 16, 8)
    expected = scaled_dot_product_attention(query, query, query)
    with attention_context(name):
        torch.testing.assert_close(scaled_dot_product_attention(query, query, query), expected)


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_a_kernel_asked_for_stands_first_in_line(name: str) -> None:
    with attention_context(name):
        assert torch._C._get_sdp_priority_order()[0] == KERNELS[name].value


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_kernels_of_cuda_are_refused_on_a_cpu(name: str) -> None:
    assert choose_attention(RecordingUnet(), name, CUDA) == name
    with pytest.raises(CheckpointError, match=f"IGEN_ATTENTION asks for {name}"):
        choose_attention(RecordingUnet(), name, CPU)
