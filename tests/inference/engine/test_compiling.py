"""What runs on a GPU alone is left to tests/gpu; the twin and which module is called when can be seen on a CPU."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.checkpoint import load_checkpoint
from inference.engine.compiling import FastUnet, call_with, fuse, twin_of
from inference.engine.gauge import Probe, probe_inputs
from inference.engine.levers import Levers
from inference.engine.types import CheckpointError
from tests.support.checkpoints import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

PROBE = Probe(64, 64)


@pytest.fixture(scope="module")
def unet() -> Any:
    return load_checkpoint("tiny", None, (CATALOGUE,), device="cpu").unet


@pytest.fixture
def own_unet(unet: Any) -> Any:
    return copy.deepcopy(unet)


@pytest.fixture(scope="module")
def inputs(unet: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return probe_inputs(unet, PROBE)


def bytes_of(*modules: Any) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in module.parameters()
    }
    return sum(storages.values())


@torch.inference_mode()
def test_a_twin_shares_weights_and_no_hooks(own_unet: Any, inputs: dict[str, Tensor]) -> None:
    twin = twin_of(own_unet)
    before = call_with(own_unet, inputs)
    assert torch.equal(call_with(twin, inputs), before)
    assert bytes_of(own_unet, twin) == bytes_of(own_unet)
    handle = own_unet.conv_out.register_forward_hook(lambda _, __, output: output + 1)
    assert torch.equal(call_with(twin, inputs), before)
    assert torch.equal(call_with(own_unet, inputs), before + 1)
    handle.remove()


@torch.inference_mode()
def test_fused_projections_draw_the_same_in_the_same_memory(own_unet: Any, inputs: dict[str, Tensor]) -> None:
    before, size = call_with(own_unet, inputs), bytes_of(own_unet)
    twin = twin_of(own_unet)
    fuse(own_unet, twin)
    assert any(name.endswith("to_qkv") for name, _ in twin.named_modules())
    torch.testing.assert_close(call_with(twin, inputs), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(call_with(own_unet, inputs), before), "the original still draws, from views"
    assert bytes_of(own_unet, twin) == size


@torch.inference_mode()
@pytest.mark.parametrize("how", ["regional", "whole"])
def test_only_prepared_shapes_are_compiled(how: str, own_unet: Any, inputs: dict[str, Tensor]) -> None:
    compiled: list[int] = []

    def backend(module: Any, _: list[Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return module.forward  # type: ignore[no-any-return]

    fast = FastUnet(own_unet, Levers(compile=how), backend=backend)  # type: ignore[arg-type]
    expected = call_with(own_unet, inputs)
    assert torch.equal(call_with(fast, inputs), expected)
    assert compiled == [], "what was not prepared runs as it is"
    fast.prepare([inputs])
    count = len(compiled)
    assert count
    served = {name: tensor.clone() for name, tensor in inputs.items()}
    assert served["sample"].is_inference()
    assert not inputs["sample"].is_inference()
    torch.testing.assert_close(call_with(fast, served), expected, rtol=1e-4, atol=1e-5)
    assert len(compiled) == count, "prepared is prepared, also for tensors of the other mode"
    other = probe_inputs(own_unet, Probe(64, 128))
    assert torch.equal(call_with(fast, other), call_with(own_unet, other))
    assert len(compiled) == count, "nothing is compiled while pictures wait"


@torch.inference_mode()
def test_loras_reach_the_picture_through_the_original(own_unet: Any, inputs: dict[str, Tensor]) -> None:
    fast = FastUnet(own_unet, Levers(fused_qkv=True))
    plain = call_with(fast, inputs)
    handle = own_unet.conv_out.register_forward_hook(lambda _, __, output: output + 1)
    hooked = fast.original(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["states"],
        added_cond_kwargs={"text_embeds": inputs["text_embeds"], "time_ids": inputs["time_ids"]},
        return_dict=False,
    )[0]
    torch.testing.assert_close(hooked, plain + 1, rtol=1e-4, atol=1e-5)
    handle.remove()


@torch.inference_mode()
def test_graphs_are_of_a_shape(own_unet: Any, inputs: dict[str, Tensor]) -> None:
    shapes: list[tuple[int, ...]] = []

    def capture(call: Any, inputs: Mapping[str, Tensor]) -> Any:
        shapes.append(tuple(inputs["sample"].shape))
        return call

    fast = FastUnet(own_unet, Levers(cuda_graphs=True), capture=capture)
    for probe in (PROBE, PROBE, PROBE, Probe(64, 128)):
        again = probe_inputs(own_unet, probe)
        assert torch.equal(call_with(fast, again), call_with(own_unet, again))
    assert shapes == [(2, 4, 8, 8)]
    assert fast.graphs == 1
    fast.forget()
    assert fast.graphs == 0


def test_levers_that_contradict_each_other_are_said() -> None:
    with pytest.raises(CheckpointError, match="IGEN_FUSED_QKV"):
        FastUnet(None, Levers(attention="xformers", fused_qkv=True))
