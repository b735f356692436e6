from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference.engine.graphs import GraphCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from inference.engine.graphs import Call, Replay


class FakeCapture:
    """Works as CUDA's capture does, as far as a CPU can: the call is made now, a replay gives what it gives then."""

    def __init__(self, problem: RuntimeError | None = None) -> None:
        self.captured = self.replayed = 0
        self.problem = problem

    def __call__(self, call: Call, inputs: Mapping[str, Tensor]) -> Replay:
        if self.problem:
            raise self.problem
        self.captured += 1

        def replay(inputs: Mapping[str, Tensor]) -> Tensor:
            self.replayed += 1
            return call(inputs)

        return replay


def double(inputs: Mapping[str, Tensor]) -> Tensor:
    return inputs["x"] * 2


def runner(cache: GraphCache) -> Callable[[str, float], float]:
    return lambda key, value: float(cache.run(key, double, {"x": torch.tensor(value)}))


def test_the_first_call_is_plain_the_second_captures() -> None:
    capture = FakeCapture()
    run = runner(GraphCache(capture))
    assert [run("a", 1), run("a", 2), run("a", 3), run("b", 4)] == [2, 4, 6, 8]
    assert (capture.captured, capture.replayed) == (1, 2)


def test_the_least_recently_used_goes() -> None:
    capture = FakeCapture()
    cache = GraphCache(capture, most=2)
    run = runner(cache)
    for key in "aabbaccbb":  # b is out when c comes, and captured anew
        run(key, 1)
    assert len(cache) == 2
    assert capture.captured == 4


def test_what_cannot_be_captured_is_called_for_good_and_lets_the_others_go() -> None:
    capture = FakeCapture()
    cache = GraphCache(capture)
    run = runner(cache)
    run("a", 1)
    run("a", 1)
    capture.problem = torch.OutOfMemoryError("no room for a graph")
    assert [run("b", 1), run("b", 2), run("b", 3)] == [2, 4, 6]
    assert len(cache) == 0
    capture.problem = None
    assert run("b", 4) == 8
    assert len(cache) == 0, "asked once, refused for good"


def test_forgotten_graphs_are_made_anew() -> None:
    capture = FakeCapture()
    cache = GraphCache(capture)
    run = runner(cache)
    run("a", 1)
    run("a", 1)
    cache.forget()
    assert len(cache) == 0
    run("a", 1)
    assert capture.captured == 1
    run("a", 1)
    assert capture.captured == 2
