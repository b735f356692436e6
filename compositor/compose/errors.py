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
    OUTPUT_NOT_WRITTEN = "output_not_written"
    COMPOSE_FAILED = "compose_failed"
    COMPOSER_UNAVAILABLE = "composer_unavailable"


NOT_THE_PRODUCTS = frozenset({ComposeCode.COMPOSER_UNAVAILABLE, ComposeCode.OUTPUT_NOT_WRITTEN})
"""What is wrong with this machine, and with no product."""
_RETRYABLE = {ComposeCode.DECODER_DIED, ComposeCode.DECODER_TIMEOUT, *NOT_THE_PRODUCTS}


class ComposeError(CodedError):
    """One product failed; `code` is one of `ComposeCode`, `message` is public and in plain words."""

    @property
    def retryable(self) -> bool:
        """Whether the same product may succeed when tried again: its process died, was slow or was not there."""
        return self.code in _RETRYABLE
