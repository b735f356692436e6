from __future__ import annotations

import gc
import os
import threading
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch

from inference.engine.lora_layers import Layer
from inference.engine.loras import Lora, LoraShelf, LoraSwitch
from inference.engine.types import LoraError, UnknownLoraError
from tests.support.loras import FORMATS, Format, fuse, save_lora, touched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint

PLENTY = 10**9


def run(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """What the UNet and both encoders answer, from fixed numbers."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 1000, (2, 77), generator=generator)
    added = {"text_embeds": torch.randn(2, 128, generator=generator), "time_ids": torch.full((2, 6), 128.0)}
    with torch.inference_mode():
        first, second = (encoder(tokens, output_hidden_states=True) for encoder in checkpoint.text_encoders)
        drawn = checkpoint.unet(
            torch.randn(2, 4, 16, 16, generator=generator),
            torch.tensor([999, 500]),
            encoder_hidden_states=torch.randn(2, 77, 192, generator=generator),
            added_cond_kwargs=added,
        )
    return {
        "unet": drawn[0],
        "first": first.hidden_states[-1],
        "second": second.hidden_states[-1],
        "pooled": second[0],
    }


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-4) for key in one)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def hooks(checkpoint: Checkpoint) -> int:
    return sum(len(module._forward_hooks) for _, _, module in touched(checkpoint))


@pytest.fixture
def own(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that the test may change."""
    return replace(
        checkpoint, unet=deepcopy(checkpoint.unet), text_encoders=tuple(map(deepcopy, checkpoint.text_encoders))
    )


@pytest.fixture
def shelf(tmp_path: Path) -> LoraShelf:
    return LoraShelf(tmp_path, keep_bytes=PLENTY)


@pytest.fixture
def switch(checkpoint: Checkpoint) -> Iterator[LoraSwitch]:
    made = LoraSwitch(checkpoint.unet, checkpoint.text_encoders)
    yield made
    made.apply(())


def take(shelf: LoraShelf, checkpoint: Checkpoint, name: str = "a", key: str = "tiny") -> Lora:
    return shelf.take(name, key, checkpoint.unet, checkpoint.text_encoders)


@pytest.mark.parametrize("style", [*FORMATS, "lycoris"])
def test_it_draws_as_with_the_change_fused_into_the_weights(
    checkpoint: Checkpoint, own: Checkpoint, shelf: LoraShelf, switch: LoraSwitch, style: Format | Literal["lycoris"]
) -> None:
    assert shelf.folder is not None
    path = shelf.folder / "a.safetensors"
    deltas = save_lora(path, checkpoint, 5, mid=True) if style == "lycoris" else save_lora(path, checkpoint, 5, style)
    before = run(checkpoint)
    switch.apply(((take(shelf, checkpoint), 0.7),))
    with_lora = run(checkpoint)
    fuse(own, deltas, 0.7)
    fused = run(own)
    assert close(with_lora, fused)
    for key in before:  # and each part was changed by far more than the tolerance
        assert (with_lora[key] - before[key]).abs().max() > 0.02, key


def test_several_add_up_whatever_their_order(
    tmp_path: Path, checkpoint: Checkpoint, own: Checkpoint, shelf: LoraShelf, switch: LoraSwitch
) -> None:
    fuse(own, save_lora(tmp_path / "a.safetensors", checkpoint, 1, "kohya"), 0.5)
    fuse(own, save_lora(tmp_path / "b.safetensors", checkpoint, 2, "peft"), -0.8)
    a, b = take(shelf, checkpoint, "a"), take(shelf, checkpoint, "b")
    wanted = run(own)
    switch.apply(((a, 0.5), (b, -0.8)))
    assert close(run(checkpoint), wanted)
    switch.apply(((b, -0.8), (a, 0.2), (a, 0.3)))
    assert close(run(checkpoint), wanted)


def test_taking_all_off_leaves_the_modules_as_they_were(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf, switch: LoraSwitch
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    before = run(checkpoint)
    forwards = [module.forward for _, _, module in touched(checkpoint)]
    weights = {(part, path): module.weight.clone() for part, path, module in touched(checkpoint)}
    state = {key: len(vars(module)) for *key_, module in touched(checkpoint) for key in [tuple(key_)]}
    switch.apply(((take(shelf, checkpoint), 1.0),))
    assert hooks(checkpoint) == len(forwards)
    run(checkpoint)
    for part, path, module in touched(checkpoint):
        assert torch.equal(module.weight, weights[part, path])
    switch.apply(())
    assert hooks(checkpoint) == 0
    assert [module.forward for _, _, module in touched(checkpoint)] == forwards
    assert {key: len(vars(module)) for *key_, module in touched(checkpoint) for key in [tuple(key_)]} == state
    assert same(run(checkpoint), before)


def test_the_same_set_again_does_nothing(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf, switch: LoraSwitch
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    uses = ((take(shelf, checkpoint), 1.0),)
    switch.apply(uses)
    on = [next(iter(module._forward_hooks.values())) for _, _, module in touched(checkpoint)]
    switch.apply(((take(shelf, checkpoint), 1.0),))
    assert [next(iter(module._forward_hooks.values())) for _, _, module in touched(checkpoint)] == on
    assert switch.applied == uses
    one = run(checkpoint)
    switch.apply(((uses[0][0], 0.5),))
    half = run(checkpoint)
    switch.apply(uses)
    assert same(run(checkpoint), one)
    assert not close(one, half)


def test_a_scale_of_zero_is_no_lora_at_all(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf, switch: LoraSwitch
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    before = run(checkpoint)
    switch.apply(((take(shelf, checkpoint), 0.0),))
    assert hooks(checkpoint) == 0
    assert same(run(checkpoint), before)


def test_one_for_another_checkpoint_leaves_nothing_behind(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf, switch: LoraSwitch
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    good = take(shelf, checkpoint)
    switch.apply(((good, 1.0),))
    foreign = Layer("unet", "conv_nowhere", torch.ones(1, 1), torch.ones(1, 1), None, 1.0)
    with pytest.raises(LoraError, match=r"no unet\.conv_nowhere"):
        switch.apply(((good, 1.0), (Lora("x", "", (foreign,)), 1.0)))
    assert (hooks(checkpoint), switch.applied) == (0, ())


def test_whether_prompts_change_is_told(tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1, wanted=lambda part, path: part == "unet" and "attn" in path)
    save_lora(tmp_path / "b.safetensors", checkpoint, 1, wanted=lambda part, path: path.endswith("q_proj"))
    assert not take(shelf, checkpoint, "a").changes_prompts
    assert take(shelf, checkpoint, "b").changes_prompts


def test_the_cache_is_bounded_by_bytes_and_lets_the_oldest_go(tmp_path: Path, checkpoint: Checkpoint) -> None:
    for name in "abc":
        save_lora(tmp_path / f"{name}.safetensors", checkpoint, ord(name))
    size = take(LoraShelf(tmp_path, keep_bytes=PLENTY), checkpoint).nbytes
    shelf = LoraShelf(tmp_path, keep_bytes=2 * size)
    a, b = take(shelf, checkpoint, "a"), take(shelf, checkpoint, "b")
    assert take(shelf, checkpoint, "a") is a
    take(shelf, checkpoint, "c")
    assert shelf.kept_bytes == 2 * size
    assert take(shelf, checkpoint, "a") is a
    assert take(shelf, checkpoint, "b") is not b
    small = LoraShelf(tmp_path, keep_bytes=size - 1)
    assert take(small, checkpoint).nbytes == size  # too large to be kept, and used all the same
    assert small.kept_bytes == 0


def test_each_checkpoint_has_its_own_and_can_be_forgotten(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    one, other = take(shelf, checkpoint, key="one"), take(shelf, checkpoint, key="other")
    assert one is not other
    shelf.forget("one")
    assert take(shelf, checkpoint, key="other") is other
    assert take(shelf, checkpoint, key="one") is not one


def test_a_file_that_was_replaced_is_read_again_and_one_that_is_gone_is_unknown(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    first = take(shelf, checkpoint)
    save_lora(tmp_path / "new.safetensors", checkpoint, 2)
    (tmp_path / "new.safetensors").replace(tmp_path / "a.safetensors")
    second = take(shelf, checkpoint)
    assert first.sha256 != second.sha256
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(UnknownLoraError):
        take(shelf, checkpoint)
    with pytest.raises(UnknownLoraError):
        shelf.check("a")


def test_names_and_checks_do_not_wait_for_a_file_that_is_being_read(
    tmp_path: Path, checkpoint: Checkpoint, shelf: LoraShelf
) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1)
    with shelf._lock:
        asker = threading.Thread(target=lambda: [ask() for ask in (lambda: shelf.check("a"), shelf.names)])
        asker.start()
        asker.join(10)
        assert not asker.is_alive()


def tensors() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    gc.collect()
    found = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    return len(found), sum(item.nbytes for item in found)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a pseudo file
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("keep_bytes", [0, 300_000, PLENTY])
def test_memory_does_not_grow_over_200_rounds(
    tmp_path: Path, checkpoint: Checkpoint, switch: LoraSwitch, keep_bytes: int
) -> None:
    names = "abcd"
    for name in names:
        # the deltas, whole weights, are dropped at once; attention alone makes 200 rounds quick
        save_lora(tmp_path / f"{name}.safetensors", checkpoint, ord(name), wanted=lambda _, path: "attn" in path)
    shelf = LoraShelf(tmp_path, keep_bytes=keep_bytes)

    def one_round(number: int) -> None:
        a, b = (take(shelf, checkpoint, names[(number + more) % len(names)]) for more in (0, 1))
        switch.apply(((a, 1.0), (b, 0.5)))
        if number % 50 == 0:
            run(checkpoint)
        switch.apply(())

    for number in range(20):
        one_round(number)
    before, memory = tensors(), resident()
    for number in range(200):
        one_round(number)
    assert tensors() == before
    assert hooks(checkpoint) == 0
    assert shelf.kept_bytes <= keep_bytes
    # what an allocator keeps to itself is far below what was read meanwhile
    assert resident() - memory < 0.2 * 400 * (tmp_path / "a.safetensors").stat().st_size


def test_a_checkpoint_is_not_held_by_its_loras(tmp_path: Path, shelf: LoraShelf, own: Checkpoint) -> None:
    save_lora(tmp_path / "a.safetensors", own, 1)
    lora = take(shelf, own)
    modules: set[int] = {id(module) for _, _, module in touched(own)}
    weights = {id(module.weight) for _, _, module in touched(own)}
    seen: list[Any] = [lora]
    for item in seen:
        for found in gc.get_referents(item):
            if isinstance(found, tuple | Layer | torch.Tensor) and all(found is not other for other in seen):
                seen.append(found)
    assert not {id(item) for item in seen} & (modules | weights)
