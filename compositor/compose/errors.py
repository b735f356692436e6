"""Why a product could not be composed."""

from __future__ import annotations

from enum import StrEnum

from compositor.coded import CodedError


class ComposeCode(StrEnum):
    """Stable names of what can go wrong; they are kept with the product and shown to users."""

    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    BROKEN_IMAGE = "broken_image"
    BAD_FRAME = "bad_frame"
    BAD_ASSET = "bad_asset"
    BAD_FONT = "bad_font"
    TOO_MUCH_MEMORY = "too_much_memory"
    DECODER_DIED = "decoder_died"
    DECODER_TIMEOUT = "decoder_timeout"
    OUTPUT_TOO_LARGE = "output_too_large"
    COMPOSE_FAILED = "compose_failed"
    COMPOSER_UNAVAILABLE = "composer_unavailable"


_RETRYABLE = {ComposeCode.DECODER_DIED, ComposeCode.DECODER_TIMEOUT, ComposeCode.COMPOSER_UNAVAILABLE}


class ComposeError(CodedError):
    """One product failed; `code` is one of `ComposeCode`, `message` is public and in plain words."""

    @property
    def retryable(self) -> bool:
        """Whether the same product may succeed when tried again: its process died, was slow or was not there."""
        return self.code in _RETRYABLE
