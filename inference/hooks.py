"""The operator's own code for each finished picture: a safety checker and a watermark. Off unless named in settings.

docs/hooks.md says how to write one. Hooks are loaded once, at the start, and called on the encoder's threads.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageFilter

from inference.errors import GenerationFailedError
from models.logs import get_logger
from models.settings import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.settings import InferenceSettings

log = get_logger(__name__)

BLUR_SHARE = 1 / 12  # of the longer side, as the blur's radius: no more than colours is left
REASON_MAX_CHARS = 200


@dataclass(frozen=True, slots=True)
class HookContext:
    """What a hook is told about the picture in its hands."""

    job_id: str
    index: int
    seed: int
    prompt: str
    negative_prompt: str
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The safety hook's answer for a picture that nobody may see; `reason` is told to the caller."""

    reason: str = ""


SafetyAnswer = Literal["allow", "blur"] | Refuse


class SafetyHook(Protocol):
    """Judges one picture. Called from several threads at once."""

    def __call__(self, pixels: NDArray[np.uint8], context: HookContext) -> SafetyAnswer:
        """`pixels` are uint8 [height, width, 3] in RGB and read-only."""


class WatermarkHook(Protocol):
    """Marks one picture. Called from several threads at once."""

    def __call__(self, pixels: NDArray[np.uint8], context: HookContext) -> NDArray[np.uint8]:
        """The marked picture, of the same shape."""


@dataclass(frozen=True, slots=True, eq=False)
class Hooked:
    """A picture that went through the hooks; `note` says what was done to a flagged one."""

    pixels: NDArray[np.uint8]
    flagged: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Both hooks; None where the operator named none."""

    safety: SafetyHook | None = None
    watermark: WatermarkHook | None = None

    def apply(self, pixels: NDArray[np.uint8], context: HookContext) -> Hooked:
        """Judge, then mark.

        Raises:
            GenerationFailedError: a hook raised or answered nonsense; the picture must not be shown.

        """
        judged = self._judge(pixels, context)
        return Hooked(self._mark(judged.pixels, context), judged.flagged, judged.note)

    def _judge(self, pixels: NDArray[np.uint8], context: HookContext) -> Hooked:
        if self.safety is None:
            return Hooked(pixels)
        shown = pixels.view()
        shown.flags.writeable = False
        try:
            answer: Any = self.safety(shown, context)
        except Exception:
            log.exception("safety_hook_failed", job_id=context.job_id, index=context.index)
            raise _failed("safety") from None
        match answer:
            case "allow":
                return Hooked(pixels)
            case "blur":
                return Hooked(_blur(pixels), flagged=True, note=f"picture {context.index} was blurred")
            case Refuse(reason=str(reason)):
                said = f": {reason[:REASON_MAX_CHARS]}" if reason else ""
                return Hooked(np.zeros_like(pixels), flagged=True, note=f"picture {context.index} is withheld{said}")
        log.error("safety_hook_failed", job_id=context.job_id, answer=repr(answer)[:REASON_MAX_CHARS])
        raise _failed("safety")

    def _mark(self, pixels: NDArray[np.uint8], context: HookContext) -> NDArray[np.uint8]:
        if self.watermark is None:
            return pixels
        try:
            marked: Any = self.watermark(pixels.copy(), context)
        except Exception:
            log.exception("watermark_hook_failed", job_id=context.job_id, index=context.index)
            raise _failed("watermark") from None
        if isinstance(marked, np.ndarray) and marked.dtype == np.uint8 and marked.shape == pixels.shape:
            return marked
        log.error("watermark_hook_failed", job_id=context.job_id, answer=type(marked).__name__)
        raise _failed("watermark")


def load_hooks(settings: InferenceSettings) -> Hooks:
    """Import the hooks that the settings name and call their factories. Blocks for as long as those take.

    Raises:
        SettingsError: naming the variable whose hook cannot be had.

    """
    return Hooks(
        _load("IGEN_SAFETY_HOOK", settings.safety_hook), _load("IGEN_WATERMARK_HOOK", settings.watermark_hook)
    )


def _load(variable: str, path: str | None) -> Any:
    if path is None:
        return None
    module, _, name = path.partition(":")
    try:
        hook = getattr(importlib.import_module(module), name)()
    except Exception as problem:  # the operator's code may raise anything; all of it is told
        raise SettingsError(f"{variable}: {path} cannot be loaded: {type(problem).__name__}: {problem}") from problem
    if not callable(hook):
        raise SettingsError(f"{variable}: {path} gave {type(hook).__name__}, which cannot be called")
    return hook


def _blur(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    radius = max(pixels.shape[:2]) * BLUR_SHARE
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)), np.uint8)


def _failed(which: str) -> GenerationFailedError:
    return GenerationFailedError(f"{which}_hook_failed", f"the {which} hook failed, so the pictures are not shown")
