"""The operator's hooks: real small modules, loaded and called as in a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inference.errors import GenerationFailedError
from inference.hooks import HookContext, Hooks, Refuse, load_hooks
from inference.settings import InferenceSettings
from models.settings import SettingsError, load_settings
from tests.support.fake_engine import FakeEngine, colour_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTEXT = HookContext("job", 1, 7, "a cat", "dogs", "tiny")
PIXELS = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)

MODULE = """
from inference.hooks import Refuse

seen = []

def by_prompt():
    def judge(pixels, context):
        seen.append((pixels.shape, str(pixels.dtype), pixels.flags.writeable, context))
        if "boom" in context.prompt:
            raise RuntimeError("secret inside")
        if "nonsense" in context.prompt:
            return "perhaps"
        if "blur" in context.prompt:
            return "blur"
        if context.index == 1:
            return Refuse("not that one")
        return "allow"
    return judge

def corner():
    def mark(pixels, context):
        pixels[:4, :4] = 255
        return pixels
    return mark

def wrong_shape():
    return lambda pixels, context: pixels[:1]

def failing_factory():
    raise OSError("the weights are gone")

def no_hook():
    return 5

constant = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "operators_hooks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "operators_hooks"
    sys.modules.pop("operators_hooks", None)


def with_hooks(**paths: str) -> InferenceSettings:
    return InferenceSettings(**paths)


def test_without_settings_there_are_no_hooks() -> None:
    assert load_hooks(InferenceSettings()) == Hooks()
    applied = Hooks().apply(PIXELS, CONTEXT)
    assert applied.pixels is PIXELS
    assert (applied.flagged, applied.note) == (False, "")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("operators_hooks:nothing", "AttributeError"),
        ("no_such_module_here:factory", "ModuleNotFoundError"),
        ("operators_hooks:failing_factory", "OSError: the weights are gone"),
        ("operators_hooks:no_hook", "gave int, which cannot be called"),
        ("operators_hooks:constant", "TypeError"),
    ],
)
@pytest.mark.parametrize("variable", ["safety_hook", "watermark_hook"])
def test_a_hook_that_cannot_be_had_names_its_variable(module: str, path: str, reason: str, variable: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_hooks(with_hooks(**{variable: path}))
    assert str(caught.value).startswith(f"IGEN_{variable.upper()}: {path}")
    assert reason in str(caught.value)


@pytest.mark.parametrize("path", ["module", "module:", ":factory", "a b:c", "module.py:x:y", "../x:y"])
def test_a_path_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("IGEN_SAFETY_HOOK", path)
    with pytest.raises(SettingsError, match="IGEN_SAFETY_HOOK"):
        load_settings(InferenceSettings)


def test_the_safety_hook_sees_the_picture_and_cannot_change_it(module: str) -> None:
    hooks = load_hooks(with_hooks(safety_hook=f"{module}:by_prompt"))
    hooks.apply(PIXELS, HookContext("job", 0, 7, "a cat", "dogs", "tiny"))
    shape, dtype, writeable, context = sys.modules[module].seen[-1]
    assert (shape, dtype, writeable) == ((64, 64, 3), "uint8", False)
    assert context == HookContext("job", 0, 7, "a cat", "dogs", "tiny")
    assert PIXELS.flags.writeable


def test_a_blurred_picture_has_lost_its_detail() -> None:
    applied = Hooks(safety=lambda *_: "blur").apply(PIXELS, CONTEXT)
    assert applied.flagged
    assert applied.pixels.std() < PIXELS.std() / 5
    assert "picture 1 was blurred" in applied.note


def test_a_refused_picture_is_black_and_says_why() -> None:
    applied = Hooks(safety=lambda *_: Refuse("x" * 500)).apply(PIXELS, CONTEXT)
    assert applied.flagged
    assert applied.pixels.max() == 0
    assert applied.note == "picture 1 is withheld: " + "x" * 200


def test_the_watermark_comes_last(module: str) -> None:
    hooks = load_hooks(with_hooks(watermark_hook=f"{module}:corner"))
    marked = Hooks(lambda *_: Refuse(), hooks.watermark).apply(PIXELS, CONTEXT).pixels
    assert (marked[:4, :4].min(), marked[4:, 4:].max()) == (255, 0)
    assert not np.array_equal(PIXELS[:4, :4], marked[:4, :4]), "the engine's pixels stay as they are"


@pytest.mark.parametrize("answer", [None, True, "ALLOW", "", 0, {"allow": True}])
def test_only_the_words_agreed_upon_let_a_picture_through(answer: Any) -> None:
    with pytest.raises(GenerationFailedError) as caught:
        Hooks(safety=lambda *_: answer).apply(PIXELS, CONTEXT)
    assert caught.value.engine_code == "safety_hook_failed"


def test_a_watermark_of_another_shape_fails_the_picture(module: str) -> None:
    hooks = load_hooks(with_hooks(watermark_hook=f"{module}:wrong_shape"))
    with pytest.raises(GenerationFailedError) as caught:
        hooks.apply(PIXELS, CONTEXT)
    assert caught.value.engine_code == "watermark_hook_failed"


# ---- in a server


async def test_flagged_pictures_are_listed_and_the_others_untouched(
    module: str, make_rig: Callable[..., Any], decode: Callable[[str], Any]
) -> None:
    hooks = {"safety_hook": f"{module}:by_prompt", "watermark_hook": f"{module}:corner"}
    async with make_rig(**hooks) as rig:
        wanted = {"prompt": "x", "seed": 300, "num_images": 3, "preview_every": 1}
        _, body = await rig.call("POST", "/runsync", json={"input": wanted})
        output = body["output"]
        assert output["flagged"] == [1]
        assert "picture 1 is withheld: not that one" in output["notes"]
        seen = [decode(image).getpixel((40, 40)) for image in output["images"]]
        assert seen == [colour_of(300), (0, 0, 0), colour_of(302)]
        assert decode(output["images"][0]).getpixel((0, 0)) == (255, 255, 255)
        assert rig.engine.submitted[0].preview_every == 0


@pytest.mark.parametrize("prompt", ["boom", "nonsense"])
async def test_a_hook_that_fails_shows_nothing(module: str, make_rig: Callable[..., Any], prompt: str) -> None:
    async with make_rig(safety_hook=f"{module}:by_prompt") as rig:
        status, body = await rig.call("POST", "/runsync", json={"input": {"prompt": prompt, "request_id": "k"}})
        assert (status, body["status"]) == (200, "FAILED")
        assert body["error"] == "safety_hook_failed: the safety hook failed, so the pictures are not shown"
        _, stream = await rig.call("GET", "/stream/k")
        assert "image" not in str(stream)
        _, body = await rig.call("POST", "/runsync", json={"input": {"prompt": "fine"}})
        assert body["status"] == "COMPLETED"


async def test_the_hash_of_the_receipt_is_that_of_the_drawn_pixels(module: str, make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(), watermark_hook=f"{module}:corner") as rig:
        _, body = await rig.call("POST", "/runsync", json={"input": {"prompt": "x", "seed": 1}})
        _, told = await rig.call("POST", "/verify", json={"receipt": body["output"]["receipt"]})
        assert told["output"]["identical"] is True
