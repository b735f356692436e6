"""What a server accepts, within the wire's own bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.settings import InferenceSettings


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sides and sizes in pixels."""

    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int
    max_hires_pixels: int = 4_194_304
    max_input_pixels: int = 40_000_000

    @classmethod
    def of(cls, settings: InferenceSettings) -> Bounds:
        """The bounds that the operator set."""
        given = {name: getattr(settings, name) for name in cls.__slots__}
        return cls(**given | {"max_hires_pixels": max(settings.max_hires_pixels, settings.max_pixels)})
