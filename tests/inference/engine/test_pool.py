"""Several checkpoints in one engine: loaded when asked for, put out when there is no room, never mixed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inference.engine.source import CheckpointSource
from inference.engine.types import Cancelled, Completed, Failed, UnknownCheckpointError
from tests.inference.engine.conftest import CHECKPOINTS
from tests.support.checkpoints import change_weights, copy_tiny, edit_json, weights_of

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint

OTHERS = ("second", "third")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two more checkpoints with weights of their own, and a broken one."""
    root = tmp_path_factory.mktemp("checkpoints")
    for number, name in enumerate(OTHERS, 1):
        made = copy_tiny(root / name)
        edit_json(made / "igen.json", name=name)
        factor = 1 + 0.3 * number
        change_weights(
            weights_of(made, "unet"),
            lambda tensors, factor=factor: {
                key: value * factor if "attn2" in key else value for key, value in tensors.items()
            },
        )
    broken = copy_tiny(root / "broken")
    edit_json(broken / "igen.json", name="broken")
    weights_of(broken, "unet").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    return root


@pytest.fixture
def source(folder: Path) -> CheckpointSource:
    return CheckpointSource("tiny", None, (CHECKPOINTS, folder), device="cpu")


def loaded_in(driver: Any) -> set[str]:
    return set(driver.engine._pool.names)


def test_a_picture_names_its_checkpoint(make_driver: Any, make_spec: Any, source: CheckpointSource) -> None:
    driver = make_driver(source=source)
    own = driver.draw(make_spec(), strict=True)
    other = driver.draw(make_spec(checkpoint="second"), strict=True)
    assert other.last.checkpoint.checkpoint == "second"
    assert own.last.checkpoint.checkpoint == "tiny"
    assert other.last.checkpoint.sha256 != own.last.checkpoint.sha256
    assert np.abs(own.picture.astype(int) - other.picture.astype(int)).max() > 3
    again = driver.draw(make_spec(), strict=True)
    assert np.array_equal(own.picture, again.picture)
    assert np.array_equal(own.picture, driver.draw(make_spec(checkpoint="tiny"), strict=True).picture)


def test_the_least_recently_used_makes_room(
    make_driver: Any, make_spec: Any, source: CheckpointSource, checkpoint: Checkpoint
) -> None:
    driver = make_driver(source=source, budget_bytes=int(2.5 * checkpoint.weight_bytes))
    first = driver.draw(make_spec(), strict=True).picture
    driver.draw(make_spec(checkpoint="second"))
    driver.draw(make_spec())
    driver.draw(make_spec(checkpoint="third"))
    assert loaded_in(driver) == {"", "third"}
    driver.draw(make_spec(checkpoint="second"))
    assert loaded_in(driver) == {"third", "second"}
    assert np.array_equal(driver.draw(make_spec(), strict=True).picture, first)


def test_all_are_served_where_only_one_fits(
    make_driver: Any, make_spec: Any, source: CheckpointSource, checkpoint: Checkpoint
) -> None:
    roomy = make_driver(source=source)
    driver = make_driver(source=source, budget_bytes=checkpoint.weight_bytes)
    specs = [make_spec(checkpoint=name, seed=seed) for seed in range(3) for name in ("", *OTHERS)]
    for one, outcome in zip(specs, driver.draw_together(specs), strict=True):
        assert isinstance(outcome.last, Completed)
        alone = roomy.draw(one).picture
        assert np.abs(outcome.picture.astype(int) - alone.astype(int)).max() <= 1
    assert len(loaded_in(driver)) == 1


def test_a_broken_one_fails_its_own_pictures_alone(
    make_driver: Any, make_spec: Any, source: CheckpointSource
) -> None:
    driver = make_driver(source=source)
    bad, good = driver.draw_together([make_spec(checkpoint="broken"), make_spec()])
    assert isinstance(good.last, Completed)
    assert isinstance(bad.last, Failed)
    assert "broken" in str(bad.last.error)


def test_names_are_those_of_the_catalogue(make_driver: Any, make_spec: Any, source: CheckpointSource) -> None:
    driver = make_driver(source=source)
    assert driver.engine.checkpoints()[0] == "tiny"
    assert set(driver.engine.checkpoints()) >= {"tiny", *OTHERS}
    assert driver.engine.refiners() == ()
    assert driver.engine.describe("second").defaults == driver.engine.info.defaults
    for name in ("nothing", str(CHECKPOINTS / "tiny"), "../tiny", "org/name"):
        with pytest.raises(UnknownCheckpointError):
            driver.start(make_spec(checkpoint=name))


def test_without_a_source_there_is_one(driver: Any, make_spec: Any) -> None:
    assert driver.engine.checkpoints() == ("tiny",)
    with pytest.raises(UnknownCheckpointError):
        driver.start(make_spec(checkpoint="second"))


def test_pictures_go_on_while_another_loads_and_who_waits_may_cancel(
    make_driver: Any, make_spec: Any, source: CheckpointSource
) -> None:
    held = threading.Event()
    really_open = source.open

    def slow_open(name: str = "", kind: Any = "base") -> Checkpoint:
        held.wait(30)
        return really_open(name, kind)

    source.open = slow_open  # type: ignore[method-assign]
    driver = make_driver(source=source)
    _, events = driver.start(make_spec(checkpoint="second"))
    leaving, left = driver.start(make_spec(checkpoint="second"))
    assert isinstance(driver.draw(make_spec()).last, Completed)
    assert driver.engine.cancel(leaving)
    assert isinstance(driver.wait(left).last, Cancelled)
    held.set()
    assert isinstance(driver.wait(events).last, Completed)
