from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from inference.engine.levers import Levers, WantedLevers, choose_levers


@dataclass
class FakeGauge:
    """Answers from a table and remembers what it was asked, and with which levers set."""

    answers: dict[str, Any]
    asked: list[tuple[str, Levers]] = field(default_factory=list)

    def choose(self, lever: str, levers: Levers) -> Any:
        self.asked.append((lever, levers))
        return self.answers.get(lever)


def test_without_a_gauge_everything_is_plain_but_what_is_forced() -> None:
    assert choose_levers(WantedLevers(), {}, None).levers == Levers()
    chosen = choose_levers(WantedLevers(attention="flash", cuda_graphs="on"), {"compile": "whole"}, None)
    assert chosen.levers == Levers(attention="flash", cuda_graphs=True)
    assert chosen.origins["compile"] == "plain"


def test_force_goes_before_table_and_table_before_measurement() -> None:
    gauge = FakeGauge({"attention": "efficient", "vae": "fp16", "fused_qkv": True, "cuda_graphs": True})
    wanted = WantedLevers(attention="cudnn", fused_qkv="off")
    chosen = choose_levers(wanted, {"attention": "flash", "cuda_graphs": False, "compile": "regional"}, gauge)
    assert chosen.levers == Levers("cudnn", "regional", cuda_graphs=False, fused_qkv=False, vae="fp16")
    assert chosen.origins == {
        "attention": "forced",
        "vae": "measured",
        "fused_qkv": "forced",
        "cuda_graphs": "table",
        "compile": "table",
    }
    assert [lever for lever, _ in gauge.asked] == ["vae"]


def test_what_is_measured_later_is_measured_with_the_earlier_set() -> None:
    gauge = FakeGauge({"attention": "cudnn", "fused_qkv": True})
    chosen = choose_levers(WantedLevers(), {}, gauge)
    assert [lever for lever, _ in gauge.asked] == ["attention", "vae", "fused_qkv", "cuda_graphs", "compile"]
    assert dict(gauge.asked)["cuda_graphs"] == Levers("cudnn", fused_qkv=True)
    assert chosen.origins["compile"] == "plain", "nobody could tell, so it is left"


@pytest.mark.parametrize(
    ("levers", "plain"),
    [
        (Levers(), True),
        (Levers(attention="xformers", vae="fp16"), True),
        (Levers(attention="cudnn"), False),
        (Levers(compile="regional"), False),
        (Levers(fused_qkv=True), False),
        (Levers(cuda_graphs=True), False),
    ],
)
def test_plain_is_what_needs_nothing_around_the_unet(levers: Levers, *, plain: bool) -> None:
    assert levers.plain is plain


def test_choices_can_be_forced_on_the_next_checkpoint() -> None:
    levers = Levers("cudnn", "regional", cuda_graphs=True, fused_qkv=False, vae="fp16")
    forced = WantedLevers.exactly(levers).forced()
    assert forced == {"attention": "cudnn", "compile": "regional", "cuda_graphs": True, "fused_qkv": False}
